// SPDX-License-Identifier: Apache-2.0
// Times grouped_matmul_combine against the roofs of this machine, measured between the calls. Weights rotate over 512
// MB. Arguments: threads, seconds a case, then any of e=8,16 rows=8,64,512 k=2048 n=7168 group=0,128 bits=4,8
// clock=wall|cpu; the rows are dealt out to the experts by chance.
#include <omp.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "anynpu.h"
#include "measure.h"

namespace {

constexpr int64_t kMemory = 512 << 20;

// Of 64 MB, other ones each time.
double next_read_roof(const uint8_t* memory) {
  constexpr int64_t kBytes = 64 << 20;
  static int64_t first = 0;
  first = (first + kBytes) % kMemory;
  return read_roof(memory + first, kBytes);
}

constexpr int64_t kBursts = 100000;

// Of exact products of int8 with int4 (without vpdpbusd: vpmaddubsw and an addition) or int8.
#define DOT_INT4(i) "vpmaddubsw %%ymm12, %%ymm12, %%ymm13\n vpaddw %%ymm13, %%ymm" i ", %%ymm" i "\n"
double dot_roof(int bits) {
  return bits == 8 || has_vnni() ? int8_roof(kBursts) : rate(64, kBursts, BURST_256(DOT_INT4));
}

std::vector<int64_t> numbers(int argc, char** argv, const std::string& name, const std::string& fallback) {
  std::vector<int64_t> values;
  for (const std::string& part : option(argc, argv, name, fallback)) values.push_back(std::atoll(part.c_str()));
  return values;
}

anynpu_tensor tensor(void* data, int32_t dtype, std::initializer_list<int64_t> shape) {
  anynpu_tensor t = {};
  t.data = data;
  t.dtype = dtype;
  t.format = ANYNPU_ND;
  t.ndim = static_cast<int32_t>(shape.size());
  std::copy(shape.begin(), shape.end(), t.shape);
  int64_t stride = 1;
  for (int axis = t.ndim - 1; axis >= 0; --axis) {
    t.strides[axis] = stride;
    stride *= t.shape[axis];
  }
  return t;
}

struct Case {
  int64_t experts, rows, k, n, group;
  int bits;
};

void run(const Case& c, double seconds, uint8_t* memory) {
  const int64_t groups = c.group == 0 ? 1 : c.k / c.group;
  std::mt19937 generator(1);
  std::vector<int8_t> x(c.rows * c.k);
  for (int8_t& value : x) value = static_cast<int8_t>(generator());
  std::vector<int64_t> counts(c.experts), row_index(c.rows), words(c.experts * groups * c.n, 0x3c000000);
  std::vector<float> scale(c.experts * c.n, 0.01f), bias(c.experts * c.n), factor(c.rows, 1.0f), y(c.rows * c.n);
  for (int64_t row = 0; row < c.rows; ++row) ++counts[generator() % c.experts];
  std::iota(row_index.begin(), row_index.end(), 0);
  const int64_t active = c.experts - std::count(counts.begin(), counts.end(), 0);

  anynpu_grouped_matmul_combine_args args = {};
  args.x = tensor(x.data(), ANYNPU_INT8, {c.rows, c.k});
  args.weight = tensor(nullptr, c.bits == 4 ? ANYNPU_INT4 : ANYNPU_INT8, {c.experts, c.k, c.n});
  args.scale = c.bits == 4 ? tensor(words.data(), ANYNPU_INT64, {c.experts, groups, c.n})
                           : tensor(scale.data(), ANYNPU_FLOAT32, {c.experts, c.n});
  if (c.bits == 4) args.bias = tensor(bias.data(), ANYNPU_FLOAT32, {c.experts, c.n});
  args.group_list = tensor(counts.data(), ANYNPU_INT64, {c.experts});
  args.group_list_type = 1;
  args.row_index = tensor(row_index.data(), ANYNPU_INT64, {c.rows});
  args.pertoken_scale = args.logit = tensor(factor.data(), ANYNPU_FLOAT32, {c.rows});
  args.y = tensor(y.data(), ANYNPU_FLOAT32, {c.rows, c.n});

  const int64_t weight_bytes = c.experts * c.k * c.n * c.bits / 8;
  const double expert_bytes = static_cast<double>(c.k * c.n) * c.bits / 8 + static_cast<double>(groups * c.n) * 8;
  const double bytes = static_cast<double>(active) * expert_bytes + static_cast<double>(c.rows * (c.k + 4 * c.n));
  std::vector<double> times, reads, dots;
  for (double total = 0; total < seconds;) {
    for (int64_t at = 0; at + weight_bytes <= kMemory; at += weight_bytes) {
      args.weight.data = memory + at;
      const double start = now();
      if (anynpu_grouped_matmul_combine(&args, nullptr, 0) != 0) std::abort();
      times.push_back(now() - start);
      total += times.back();
    }
    reads.push_back(next_read_roof(memory));
    dots.push_back(dot_roof(c.bits));
  }
  const auto median = [](std::vector<double> values) {
    std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
    return values[values.size() / 2];
  };
  const double time = median(times), read = median(reads), dot = median(dots);
  const double work = 2.0 * static_cast<double>(c.rows * c.k * c.n);
  std::printf("w%d e=%ld rows=%ld (%ld experts) %ldx%ld group=%ld: %.0f us, ", c.bits, c.experts, c.rows, active, c.k,
              c.n, c.group, time * 1e6);
  std::printf("%.1f of %.1f GB/s = %.0f %%, %.0f of %.0f Gop/s = %.0f %%\n", bytes / time * 1e-9, read * 1e-9,
              100 * bytes / time / read, work / time * 1e-9, dot * 1e-9, 100 * work / time / dot);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return std::fprintf(stderr, "usage: %s threads seconds [name=values]...\n", argv[0]), 2;
  omp_set_num_threads(std::atoi(argv[1]));
  cpu_clock = option(argc, argv, "clock", "wall")[0] == "cpu";
  auto* memory = static_cast<uint8_t*>(std::aligned_alloc(64, kMemory));
  std::mt19937_64 generator(1);
  for (int64_t i = 0; i < kMemory; i += 8) {
    const uint64_t word = generator();
    std::memcpy(memory + i, &word, 8);
  }
  const int64_t k = numbers(argc, argv, "k", "2048")[0], n = numbers(argc, argv, "n", "7168")[0];
  for (int64_t bits : numbers(argc, argv, "bits", "4")) {
    for (int64_t experts : numbers(argc, argv, "e", "8")) {
      for (int64_t rows : numbers(argc, argv, "rows", "8,64,512")) {
        for (int64_t group : numbers(argc, argv, "group", "0")) {
          run({experts, rows, k, n, group, static_cast<int>(bits)}, std::atof(argv[2]), memory);
        }
      }
    }
  }
}
