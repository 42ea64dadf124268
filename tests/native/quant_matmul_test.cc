// SPDX-License-Identifier: Apache-2.0
// quant_matmul with int8 weights, plain, transposed and prepacked, against plain integer sums: the same bits on every tier
// that this machine has, for one, two and three threads. Arguments: [cases per tier] [seed] [only tier]
#include <algorithm>

#include "cases.h"

namespace {

Tensor<uint8_t> prepacked(const anynpu_tensor& weight) {
  anynpu_weight_quant_prepack_args args = {};
  args.weight = weight;
  size_t bytes = 0;
  require(anynpu_weight_quant_prepack_check(&args, &bytes) == ANYNPU_OK, "prepack check");
  Tensor<uint8_t> packed(ANYNPU_UINT8, {static_cast<int64_t>(bytes)});
  args.packed = packed.view;
  require(anynpu_weight_quant_prepack(&args, nullptr, 0) == ANYNPU_OK, "prepack");
  return packed;
}

// Magnitudes of 127 and 128 alone are as likely as all others, so that sums which saturate show.
Tensor<int8_t> random_bytes(int64_t rows, int64_t columns) {
  const bool extreme = chance(50);
  Tensor<int8_t> made(ANYNPU_INT8, {rows, columns});
  for (int64_t i = 0; i < made.count; ++i) {
    made.data[i] = static_cast<int8_t>(extreme ? pick(0, 1) * 255 - 128 : pick(-128, 127));
  }
  return made;
}

enum Layout { kPlain, kTransposed, kPrepacked };

void run_case(const char* tier, int64_t seed) {
  generator.seed(static_cast<uint64_t>(seed));
  const int64_t m = pick(0, 2) == 0 ? pick(1, 40) : pick(1, 9), k = pick(1, 900), n = pick(1, 300);
  const auto layout = static_cast<Layout>(pick(0, 2));
  const Tensor<int8_t> x = random_bytes(m, k), weight = random_bytes(k, n);
  Tensor<int32_t> bias(ANYNPU_INT32, {n}), y(ANYNPU_INT32, {m, n});
  bias.fill(-1e6, 1e6);
  Tensor<float> one(ANYNPU_FLOAT32, {1});
  one.data[0] = 1;
  anynpu_quant_matmul_args args = {};
  args.x1 = x.view;
  args.x2 = weight.view;
  args.scale = one.view;
  args.bias = bias.view;
  args.y = y.view;
  if (layout == kTransposed) {
    args.x2.strides[0] = 1;
    args.x2.strides[1] = k;
  }
  const int64_t k_stride = args.x2.strides[0], n_stride = args.x2.strides[1];
  Tensor<uint8_t> packed;
  if (layout == kPrepacked) {
    packed = prepacked(args.x2);
    args.x2 = packed.view;
  }
  run_on_threads(anynpu_quant_matmul, args, y);
  for (int64_t row = 0; row < m; ++row) {
    for (int64_t column = 0; column < n; ++column) {
      int32_t sum = bias.data[column];
      for (int64_t i = 0; i < k; ++i) sum += x.data[row * k + i] * weight.data[i * k_stride + column * n_stride];
      const int32_t got = y.data[row * n + column];
      if (got == sum) continue;
      std::printf("%s: seed %ld, M %ld, K %ld, N %ld, layout %d: y[%ld, %ld] is %d, expected %d\n", tier, seed, m, k, n,
                  layout, row, column, got, sum);
      std::exit(1);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int cases = argc > 1 ? std::atoi(argv[1]) : 300;
  const int64_t seed = argc > 2 ? std::atoll(argv[2]) : 1;
  for (const char* tier : {"amx", "avx512vnni", "avxvnni", "avx2", "neon", "portable"}) {
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
