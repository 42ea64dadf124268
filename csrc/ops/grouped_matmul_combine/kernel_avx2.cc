// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>

#include "ops/grouped_matmul_combine/kernel.inc"

namespace anynpu {
namespace {

constexpr int kTileRows = 4;
// Products of bytes up to 15 with int8 add up to at most 2 * 15 * 128 a word and step, so 8 steps stay within int16.
constexpr int64_t kStepsAtOnce = 8;

// 16 columns, two vectors of eight with four k each, of up to four rows.
template <int kRows>
void tile_columns(const Int8Product& product, const uint8_t* panel, const int32_t* x, int32_t* c) {
  const __m256i ones = _mm256_set1_epi16(1);
  for (int64_t step = 0; step < product.steps; step += kStepsAtOnce) {
    const int64_t end = product.steps - step < kStepsAtOnce ? product.steps : step + kStepsAtOnce;
    __m256i sums[kRows][2];
    for (int row = 0; row < kRows; ++row) sums[row][0] = sums[row][1] = _mm256_setzero_si256();
    for (int64_t i = step; i < end; ++i, panel += 256, x += kRows) {
      const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(panel));
      const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(panel) + 1);
      for (int row = 0; row < kRows; ++row) {
        const __m256i values = _mm256_set1_epi32(x[row]);
        sums[row][0] = _mm256_add_epi16(sums[row][0], _mm256_maddubs_epi16(low, values));
        sums[row][1] = _mm256_add_epi16(sums[row][1], _mm256_maddubs_epi16(high, values));
      }
    }
    for (int row = 0; row < kRows; ++row) {
      for (int half = 0; half < 2; ++half) {
        __m256i* to = reinterpret_cast<__m256i*>(c + row * product.c_stride + 8 * half);
        const __m256i wide = _mm256_madd_epi16(sums[row][half], ones);
        _mm256_storeu_si256(to, _mm256_add_epi32(_mm256_loadu_si256(to), wide));
      }
    }
  }
}

template <int kRows>
void tile(int rows, const Int8Product& product, const int32_t* x, int32_t* c) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return tile<kRows - 1>(rows, product, x, c);
  }
  for (int column = 0; column < 64; column += 16)
    tile_columns<kRows>(product, product.panel + 4 * column, x, c + column);
}

void multiply_int4(const Int8Product& product) {
  for (int64_t row = 0; row < product.rows; row += kTileRows) {
    const int rows = product.rows - row < kTileRows ? static_cast<int>(product.rows - row) : kTileRows;
    tile<kTileRows>(rows, product, product.x + row * product.row_steps + product.first_step * rows,
                    product.c + row * product.c_stride);
  }
}

}  // namespace

extern const CombineKernel combine_avx2;
const CombineKernel combine_avx2 = {Isa::avx2, kTileRows, multiply_int4, scale_group, add_row, add_shared};

}  // namespace anynpu
