// SPDX-License-Identifier: Apache-2.0
#include "core/cpu.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <asm/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "core/status.h"

namespace anynpu {
namespace {

constexpr const char* kNames[] = {
#define ANYNPU_ISA(name) #name,
#include "core/isa.def"
#undef ANYNPU_ISA
};
constexpr int kCount = sizeof(kNames) / sizeof(kNames[0]);

#if defined(__x86_64__)
// Not every compiler's __builtin_cpu_supports knows it.
bool has_f16c() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}
#endif

#if defined(__x86_64__) && !defined(ANYNPU_EMULATE_AVX512)
bool has_avxvnni() {
  unsigned eax, ebx, ecx, edx;
  constexpr unsigned kAvxVnni = 1u << 4;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & kAvxVnni) != 0;
}

bool has_amx() {
  unsigned eax, ebx, ecx, edx;
  constexpr unsigned kAmx = 1u << 22 | 1u << 24 | 1u << 25;  // bfloat16, tiles, int8
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (edx & kAmx) == kAmx;
}

// The tiles, 8 KiB a thread, are for processes that ask for them.
bool may_use_tiles() {
#if defined(__linux__)
#if !defined(ARCH_REQ_XCOMP_PERM)
#define ARCH_REQ_XCOMP_PERM 0x1023
#endif
  constexpr long kTileData = 18;
  static const bool may = syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, kTileData) == 0;
  return may;
#else
  return false;
#endif
}
#endif

#if defined(__aarch64__)
bool has_dot_product() {
#if defined(__linux__)
  return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#else
  return false;
#endif
}
#endif

const char* cpu_refusal(Isa isa) {
  if (isa == Isa::portable) return nullptr;
#if defined(__x86_64__)
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("fma") && has_f16c();
#if defined(ANYNPU_EMULATE_AVX512)
  const bool avx512vnni = avx2, avx512vbmi = avx2, avx512bf16 = avx2, amx = avx2, tiles = avx2, avxvnni = avx2;
#else
  const bool avx512vnni = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512vnni");
  const bool avx512vbmi = avx512vnni && __builtin_cpu_supports("avx512vbmi") &&
                          __builtin_cpu_supports("avx512bitalg") && __builtin_cpu_supports("gfni");
  const bool avx512bf16 = avx512vbmi && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_is("amd");
  const bool avxvnni = avx2 && has_avxvnni();
  const bool amx = avx512vnni && has_amx(), tiles = amx && may_use_tiles();
#endif
  switch (isa) {
    case Isa::avx2: return avx2 ? nullptr : "the CPU lacks AVX2, BMI2, FMA or F16C";
    case Isa::avxvnni: return avxvnni ? nullptr : "the CPU lacks AVX2, BMI2, FMA, F16C or AVX-VNNI";
    case Isa::avx512vbmi:
      return avx512vbmi ? nullptr : "the CPU lacks AVX-512 F, BW, VL, DQ, VNNI, VBMI, BITALG or GFNI";
    case Isa::avx512bf16: return avx512bf16 ? nullptr : "the CPU is not one of AMD with AVX-512 BF16";
    case Isa::avx512vnni: return avx512vnni ? nullptr : "the CPU lacks AVX-512 F, BW, VL, DQ or VNNI";
    case Isa::neon: return "not an ARM64 CPU";
    case Isa::amx:
      if (!amx) return "the CPU lacks AVX-512 VNNI, AMX-TILE, AMX-INT8 or AMX-BF16";
      return tiles ? nullptr : "the operating system does not let the process use AMX";
    case Isa::portable: break;
  }
  return "unknown tier";
#elif defined(__aarch64__)
  if (isa != Isa::neon) return "not an x86-64 CPU";
  return has_dot_product() ? nullptr : "the CPU lacks the dot product extension (ASIMDDP)";
#else
  return isa == Isa::neon ? "not an ARM64 CPU" : "not an x86-64 CPU";
#endif
}

int find(const char* name) {
  for (int i = 0; i < kCount; ++i) {
    if (name != nullptr && std::strcmp(name, kNames[i]) == 0) return i;
  }
  return -1;
}

int best_from(int cap) {
  for (int i = cap; i < kCount; ++i) {
    if (cpu_refusal(static_cast<Isa>(i)) == nullptr) return i;
  }
  return kCount - 1;
}

int environment_cap() {
  const int cap = find(std::getenv("ANYNPU_MAX_ISA"));
  return cap < 0 ? 0 : cap;
}

std::atomic<int>& cap() {
  static std::atomic<int> value{environment_cap()};
  return value;
}

std::atomic<int>& current() {
  static std::atomic<int> value{best_from(cap().load())};
  return value;
}

}  // namespace

Isa current_isa() { return static_cast<Isa>(current().load(std::memory_order_relaxed)); }

bool cpu_runs(Isa isa) {
  static const auto runs = [] {
    struct {
      bool tier[kCount];
    } all;
    for (int i = 0; i < kCount; ++i) all.tier[i] = cpu_refusal(static_cast<Isa>(i)) == nullptr;
    return all;
  }();
  return runs.tier[static_cast<int>(isa)];
}

}  // namespace anynpu

extern "C" const char* anynpu_isa(void) { return anynpu::kNames[static_cast<int>(anynpu::current_isa())]; }

extern "C" const char* anynpu_isa_refusal(const char* isa) {
  const int index = anynpu::find(isa);
  if (index < 0) return "unknown tier";
  if (const char* refusal = anynpu::cpu_refusal(static_cast<anynpu::Isa>(index))) return refusal;
  return index < anynpu::cap().load() ? "capped by ANYNPU_MAX_ISA or anynpu_set_max_isa" : nullptr;
}

extern "C" int32_t anynpu_set_max_isa(const char* isa) {
  const int index = isa == nullptr ? 0 : anynpu::find(isa);
  if (index < 0) return anynpu::fail(ANYNPU_BAD_VALUE, "set_max_isa: isa must name a tier, got '%s'", isa);
  anynpu::cap().store(index);
  anynpu::current().store(anynpu::best_from(index));
  return ANYNPU_OK;
}
