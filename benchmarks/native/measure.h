// SPDX-License-Identifier: Apache-2.0
// What the native benchmarks share: their clock, the rate of an instruction, their arguments.
#pragma once

#include <omp.h>

#include <chrono>
#include <cstdint>
#include <cstring>
#include <ctime>
#include <sstream>
#include <string>
#include <vector>

inline bool cpu_clock = false;

// Wall time; or the time of this thread alone, for one thread on a machine that others use too.
inline double now() {
  if (cpu_clock) {
    timespec time;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// One instruction on twelve accumulators, to keep its ports busy through its latency.
#define EACH_OF_TWELVE(DO) \
  DO("0") DO("1") DO("2") DO("3") DO("4") DO("5") DO("6") DO("7") DO("8") DO("9") DO("10") DO("11")
#define CLOBBERS \
  "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13"
#define BURST_512(INSTRUCTION) \
  [] { asm volatile("vpxorq %%zmm12, %%zmm12, %%zmm12\n" EACH_OF_TWELVE(INSTRUCTION)::: CLOBBERS); }
#define BURST_256(INSTRUCTION) \
  [] { asm volatile("vpxor %%ymm12, %%ymm12, %%ymm12\n" EACH_OF_TWELVE(INSTRUCTION)::: CLOBBERS); }

// Operations a second of all threads, `ops_each` an accumulator of a burst.
template <typename Burst>
double rate(double ops_each, int64_t rounds, const Burst& burst) {
  int threads = 1;
  const double start = now();
#pragma omp parallel
  {
    threads = omp_get_num_threads();
    for (int64_t i = 0; i < rounds; ++i) burst();
  }
  return 12.0 * ops_each * static_cast<double>(rounds * threads) / (now() - start);
}

// Sixteen bytes at a time, which is what -O2 makes of words, are read 15 % slower from memory.
typedef uint64_t Words __attribute__((vector_size(32), aligned(8)));
__attribute__((target_clones("avx2", "default"))) static int64_t read_lines(const uint8_t* data, int64_t first,
                                                                            int64_t last) {
  const auto* from = reinterpret_cast<const Words*>(data);
  Words sums[8] = {};
  for (int64_t i = 2 * first; i + 8 <= 2 * last; i += 8) {
    for (int j = 0; j < 8; ++j) sums[j] ^= from[i + j];
  }
  int64_t total = 0;
  for (const Words& sum : sums) total += static_cast<int64_t>(sum[0] & 1);
  return total;
}

// Bytes a second of reading `bytes` bytes at `data`.
inline double read_roof(const uint8_t* data, int64_t bytes) {
  const int64_t lines = bytes / 64;
  int64_t total = 0;
  const double start = now();
#pragma omp parallel reduction(+ : total)
  {
    const int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
    total += read_lines(data, lines * thread / threads, lines * (thread + 1) / threads);
  }
  return total < 0 ? 0 : static_cast<double>(bytes) / (now() - start);
}

inline bool has_vnni() { return __builtin_cpu_supports("avx512vnni"); }

// Of exact int8 products: vpdpbusd, or without it vpmaddwd and an addition.
#define DOT_512(i) "vpdpbusd %%zmm12, %%zmm12, %%zmm" i "\n"
#define DOT_256(i) "vpmaddwd %%ymm12, %%ymm12, %%ymm13\n vpaddd %%ymm13, %%ymm" i ", %%ymm" i "\n"
inline double int8_roof(int64_t rounds) {
  return has_vnni() ? rate(128, rounds, BURST_512(DOT_512)) : rate(32, rounds, BURST_256(DOT_256));
}

// The parts of the argument `name`=part,part.
inline std::vector<std::string> option(int argc, char** argv, const std::string& name, const std::string& fallback) {
  std::string value = fallback;
  for (int i = 3; i < argc; ++i) {
    if (std::strncmp(argv[i], (name + "=").c_str(), name.size() + 1) == 0) value = argv[i] + name.size() + 1;
  }
  std::vector<std::string> parts;
  std::stringstream stream(value);
  for (std::string part; std::getline(stream, part, ',');) parts.push_back(part);
  return parts;
}
