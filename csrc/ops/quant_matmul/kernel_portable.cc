// SPDX-License-Identifier: Apache-2.0
#include "simd/vec_portable.h"

#include "ops/quant_matmul/store.inc"

namespace anynpu {
namespace {

constexpr int kTileRows = 4;

void scale_exactly(const int32_t* sums, const float* scale, int64_t count, float* values) {
  scale_exactly_one_by_one(sums, scale, count, values);
}

void tile(const Int8Product& product, int rows, const int32_t* x, int32_t* c) {
  for (int64_t step = 0; step < product.steps; ++step) {
    const uint8_t* weights = product.panel.data + step * product.panel.step_bytes;
    for (int row = 0; row < rows; ++row) {
      int8_t values[4];
      memcpy(values, x + step * rows + row, sizeof(values));
      uint32_t* sums = reinterpret_cast<uint32_t*>(c + row * product.c_stride);
      for (int column = 0; column < 64; ++column) {
        const uint8_t* w = weights + column / 32 * product.panel.half_bytes + column % 32 * 4;
        sums[column] +=
            static_cast<uint32_t>(w[0] * values[0] + w[1] * values[1] + w[2] * values[2] + w[3] * values[3]);
      }
    }
  }
}

void multiply(const Int8Product& product) {
  for_each_tile<kTileRows>(product, [&](int rows, const int32_t* x, int32_t* c) { tile(product, rows, x, c); });
}

}  // namespace

extern const Int8Kernel int8_portable;
const Int8Kernel int8_portable = {Isa::portable, 0,       kTileRows, 1, kSpan, kSpan, kAnyRows, kCachedSums,
                                  multiply,      nullptr, nullptr,   0, 0,     sum,   store};

}  // namespace anynpu
