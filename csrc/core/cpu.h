// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace anynpu {

enum class Isa : int32_t {
#define ANYNPU_ISA(name) name,
#include "core/isa.def"
#undef ANYNPU_ISA
};

// The tier in force: the best one that this machine, this build and the cap allow. Lower values are better.
Isa current_isa();

// Whether the CPU has a tier: better ones need not include it.
bool cpu_runs(Isa isa);

// The first entry of a kernel table (best first) that is no better than the tier in force, that the CPU has and that is
// suitable(kernel).
template <typename Kernel, int N, typename Suitable>
const Kernel& pick(const Kernel* const (&table)[N], const Suitable& suitable) {
  for (const Kernel* kernel : table) {
    if (kernel->isa >= current_isa() && cpu_runs(kernel->isa) && suitable(*kernel)) return *kernel;
  }
  return *table[N - 1];
}

template <typename Kernel, int N>
const Kernel& pick(const Kernel* const (&table)[N]) {
  return pick(table, [](const Kernel&) { return true; });
}

}  // namespace anynpu

// Beside the driver: the kernels of an operator in the tiers that most have, best first, for pick(kKernels). Operators with
// others list them in a kernels.def.
#if defined(__x86_64__)
#define ANYNPU_KERNELS(Kernel, stem)                                   \
  extern const Kernel stem##_avx512vnni, stem##_avx2, stem##_portable; \
  constexpr const Kernel* kKernels[] = {&stem##_avx512vnni, &stem##_avx2, &stem##_portable};
#elif defined(__aarch64__)
#define ANYNPU_KERNELS(Kernel, stem)                \
  extern const Kernel stem##_neon, stem##_portable; \
  constexpr const Kernel* kKernels[] = {&stem##_neon, &stem##_portable};
#else
#define ANYNPU_KERNELS(Kernel, stem)   \
  extern const Kernel stem##_portable; \
  constexpr const Kernel* kKernels[] = {&stem##_portable};
#endif

// In kernel.inc: the kernel of the unit's tier, `= {...};` follows.
#define ANYNPU_DEFINE_KERNEL(Kernel, stem)                      \
  extern const Kernel ANYNPU_JOIN(stem##_, ANYNPU_KERNEL_TIER); \
  const Kernel ANYNPU_JOIN(stem##_, ANYNPU_KERNEL_TIER)
#define ANYNPU_JOIN(a, b) ANYNPU_JOIN_(a, b)
#define ANYNPU_JOIN_(a, b) a##b
