// SPDX-License-Identifier: Apache-2.0
// Without VNNI: bytes become words, because the byte product of AVX2 saturates.
#include "simd/vec_avx2.h"

#include "ops/quant_matmul/store.inc"

namespace anynpu {
namespace {

constexpr int kTileRows = 3;

void scale_exactly(const int32_t* sums, const float* scale, int64_t count, float* values) {
  const __m256i below = _mm256_set1_epi64x(kBelowFloat), last = _mm256_set1_epi64x(kBelowFloat + 1);
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    const __m256d sum = _mm256_cvtepi32_pd(_mm_loadu_si128(reinterpret_cast<const __m128i*>(sums + i)));
    const __m256i bits = _mm256_castpd_si256(_mm256_mul_pd(sum, _mm256_cvtps_pd(_mm_loadu_ps(scale + i))));
    const __m256i nothing = _mm256_cmpeq_epi64(_mm256_and_si256(bits, below), _mm256_setzero_si256());
    const __m256i odd = _mm256_or_si256(_mm256_andnot_si256(below, bits), _mm256_andnot_si256(nothing, last));
    _mm_storeu_ps(values + i, _mm256_cvtpd_ps(_mm256_castsi256_pd(odd)));
  }
  scale_exactly_one_by_one(sums + i, scale + i, count - i, values + i);
}

// 16 columns of up to three rows: lanes hold the sums of k 0, 1 and of k 2, 3 of a column side by side.
template <int kRows>
void tile_columns(const Int8Product& product, const uint8_t* panel, const int32_t* x, int32_t* c) {
  __m256i sums[kRows][4];
  for (int row = 0; row < kRows; ++row) {
    for (int vec = 0; vec < 4; ++vec) sums[row][vec] = _mm256_setzero_si256();
  }
  for (int64_t step = 0; step < product.steps; ++step, panel += 256, x += kRows) {
    __m256i weights[4];
    for (int vec = 0; vec < 4; ++vec) {
      weights[vec] = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(panel) + vec));
    }
    for (int row = 0; row < kRows; ++row) {
      const __m256i values = _mm256_cvtepi8_epi16(_mm_set1_epi32(x[row]));
      for (int vec = 0; vec < 4; ++vec) {
        sums[row][vec] = _mm256_add_epi32(sums[row][vec], _mm256_madd_epi16(weights[vec], values));
      }
    }
  }
  for (int row = 0; row < kRows; ++row) {
    for (int half = 0; half < 2; ++half) {
      // hadd works within 128-bit lanes: quarters come out as 0, 2, 1, 3.
      const __m256i added = _mm256_hadd_epi32(sums[row][2 * half], sums[row][2 * half + 1]);
      __m256i* to = reinterpret_cast<__m256i*>(c + row * product.c_stride + 8 * half);
      _mm256_storeu_si256(to, _mm256_add_epi32(_mm256_loadu_si256(to), _mm256_permute4x64_epi64(added, 0xd8)));
    }
  }
}

template <int kRows>
void tile(int rows, const Int8Product& product, const int32_t* x, int32_t* c) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return tile<kRows - 1>(rows, product, x, c);
  }
  for (int column = 0; column < 64; column += 16) tile_columns<kRows>(product, product.panel + 4 * column, x, c + column);
}

void multiply(const Int8Product& product) {
  for_each_tile<kTileRows>(product, [&](int rows, const int32_t* x, int32_t* c) { tile<kTileRows>(rows, product, x, c); });
}

}  // namespace

extern const Int8Kernel int8_avx2;
const Int8Kernel int8_avx2 = {Isa::avx2, kTileRows, multiply, store};

}  // namespace anynpu
