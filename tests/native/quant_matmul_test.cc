// SPDX-License-Identifier: Apache-2.0
// quant_matmul with int8 weights, plain, transposed and prepacked, against plain integer sums: the same bits on every tier
// that this machine has, for one, two and three threads. Arguments: [cases per tier] [seed] [only tier]
#include <omp.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "anynpu.h"

namespace {

std::mt19937_64 generator;

int64_t pick(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(generator); }

void require(int32_t status, const char* what) {
  if (status == ANYNPU_OK) return;
  std::printf("%s: %s\n", what, anynpu_last_error());
  std::exit(1);
}

anynpu_tensor matrix(void* data, int32_t dtype, int64_t rows, int64_t columns) {
  anynpu_tensor view = {};
  view.data = data;
  view.dtype = dtype;
  view.format = ANYNPU_ND;
  view.ndim = 2;
  view.shape[0] = rows;
  view.shape[1] = columns;
  view.strides[0] = columns;
  view.strides[1] = 1;
  return view;
}

anynpu_tensor vector(void* data, int32_t dtype, int64_t count) {
  anynpu_tensor view = matrix(data, dtype, 1, count);
  view.ndim = 1;
  view.shape[0] = count;
  view.strides[0] = 1;
  return view;
}

std::vector<uint8_t> prepacked(const anynpu_tensor& weight) {
  anynpu_weight_quant_prepack_args args = {};
  args.weight = weight;
  size_t bytes = 0;
  require(anynpu_weight_quant_prepack_check(&args, &bytes), "prepack check");
  std::vector<uint8_t> blob(bytes);
  args.packed = vector(blob.data(), ANYNPU_UINT8, static_cast<int64_t>(bytes));
  require(anynpu_weight_quant_prepack(&args, nullptr, 0), "prepack");
  return blob;
}

// Magnitudes of 127 and 128 alone are as likely as all others, so that sums which saturate show.
std::vector<int8_t> random_bytes(int64_t count) {
  const bool extreme = pick(0, 1) == 0;
  std::vector<int8_t> values(static_cast<size_t>(count));
  for (int8_t& value : values) value = static_cast<int8_t>(extreme ? pick(0, 1) * 255 - 128 : pick(-128, 127));
  return values;
}

enum Layout { kPlain, kTransposed, kPrepacked };

void run_case(const char* tier, int64_t seed) {
  generator.seed(static_cast<uint64_t>(seed));
  const int64_t m = pick(0, 2) == 0 ? pick(1, 40) : pick(1, 9), k = pick(1, 900), n = pick(1, 300);
  const auto layout = static_cast<Layout>(pick(0, 2));
  std::vector<int8_t> x = random_bytes(m * k), weight = random_bytes(k * n);
  std::vector<int32_t> bias(static_cast<size_t>(n)), sums(static_cast<size_t>(m * n)), y(sums.size());
  for (int32_t& value : bias) value = static_cast<int32_t>(pick(-1000000, 1000000));
  const int64_t k_stride = layout == kTransposed ? 1 : n, n_stride = layout == kTransposed ? k : 1;
  for (int64_t row = 0; row < m; ++row) {
    for (int64_t column = 0; column < n; ++column) {
      int32_t sum = bias[column];
      for (int64_t i = 0; i < k; ++i) sum += x[row * k + i] * weight[i * k_stride + column * n_stride];
      sums[row * n + column] = sum;
    }
  }
  anynpu_quant_matmul_args args = {};
  args.x1 = matrix(x.data(), ANYNPU_INT8, m, k);
  args.x2 = matrix(weight.data(), ANYNPU_INT8, k, n);
  args.x2.strides[0] = k_stride;
  args.x2.strides[1] = n_stride;
  std::vector<uint8_t> blob;
  if (layout == kPrepacked) {
    blob = prepacked(args.x2);
    args.x2 = vector(blob.data(), ANYNPU_UINT8, static_cast<int64_t>(blob.size()));
  }
  float one = 1.0f;
  args.scale = vector(&one, ANYNPU_FLOAT32, 1);
  args.bias = vector(bias.data(), ANYNPU_INT32, n);
  args.y = matrix(y.data(), ANYNPU_INT32, m, n);
  for (int threads = 1; threads <= 3; ++threads) {
    omp_set_num_threads(threads);
    std::fill(y.begin(), y.end(), -1);
    size_t bytes = 0;
    require(anynpu_quant_matmul_check(&args, &bytes), "check");
    std::vector<uint8_t> workspace(bytes);
    require(anynpu_quant_matmul(&args, workspace.data(), bytes), "quant_matmul");
    if (y == sums) continue;
    const auto at = std::mismatch(y.begin(), y.end(), sums.begin()).first - y.begin();
    std::printf("%s: seed %ld, M %ld, K %ld, N %ld, layout %d, %d threads: element %ld is %d, expected %d\n", tier,
                seed, m, k, n, layout, threads, at, y[at], sums[at]);
    std::exit(1);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int cases = argc > 1 ? std::atoi(argv[1]) : 300;
  const int64_t seed = argc > 2 ? std::atoll(argv[2]) : 1;
  for (const char* tier : {"amx", "avx512vnni", "avx2", "neon", "portable"}) {
    if (argc > 3 && std::strcmp(tier, argv[3]) != 0) continue;
    anynpu_set_max_isa(nullptr);
    if (const char* refusal = anynpu_isa_refusal(tier)) {
      std::printf("%s: not run, %s\n", tier, refusal);
      continue;
    }
    anynpu_set_max_isa(tier);
    for (int i = 0; i < cases; ++i) run_case(tier, seed + i);
    std::printf("%s: %d cases passed\n", tier, cases);
  }
  return 0;
}
