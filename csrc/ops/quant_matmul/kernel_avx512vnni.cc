// SPDX-License-Identifier: Apache-2.0
#include "simd/dot_avx512.h"
#include "simd/vec_avx512vnni.h"

#include "ops/quant_matmul/direct_avx512.inc"
#include "ops/quant_matmul/store.inc"

namespace anynpu {
namespace {

constexpr int kTileRows = 6;  // six rows of 64 columns fill the registers

// Sums of 24 bits are floats, and the product's remainder says whether the product is exact.
void scale_exactly(const int32_t* sums, const float* scale, int64_t count, float* values) {
  constexpr int kTowardZero = _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC;
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    const __m512i sum = _mm512_loadu_si512(sums + i);
    if (_mm512_cmpgt_epu32_mask(_mm512_abs_epi32(sum), _mm512_set1_epi32(1 << 24)) != 0) {
      scale_exactly_one_by_one(sums + i, scale + i, 16, values + i);
      continue;
    }
    const __m512 value = _mm512_cvtepi32_ps(sum), factor = _mm512_loadu_ps(scale + i);
    const __m512 product = _mm512_mul_round_ps(value, factor, kTowardZero);
    const __m512 rest = _mm512_fmsub_ps(value, factor, product);
    const __mmask16 inexact = _mm512_cmp_ps_mask(rest, _mm512_setzero_ps(), _CMP_NEQ_OQ);
    const __m512i bits = _mm512_castps_si512(product);
    _mm512_storeu_si512(values + i, _mm512_mask_or_epi32(bits, inexact, bits, _mm512_set1_epi32(1)));
  }
  scale_exactly_one_by_one(sums + i, scale + i, count - i, values + i);
}

template <int kRows>
void tile_rows(const Int8Product& product, const int32_t* x, int32_t* c) {
  __m512i sums[kRows][4];
#pragma GCC unroll 6
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 4
    for (int vec = 0; vec < 4; ++vec) sums[row][vec] = _mm512_loadu_si512(c + row * product.c_stride + 16 * vec);
  }
  const uint8_t* panel = product.panel;
  for (int64_t step = 0; step < product.steps; ++step, panel += 256, x += kRows) {
    __m512i weights[4];
#pragma GCC unroll 4
    for (int vec = 0; vec < 4; ++vec) weights[vec] = _mm512_loadu_si512(panel + 64 * vec);
#pragma GCC unroll 6
    for (int row = 0; row < kRows; ++row) {
      const __m512i value = _mm512_set1_epi32(x[row]);
#pragma GCC unroll 4
      for (int vec = 0; vec < 4; ++vec) dot_bytes(sums[row][vec], weights[vec], value);
    }
  }
#pragma GCC unroll 6
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 4
    for (int vec = 0; vec < 4; ++vec) _mm512_storeu_si512(c + row * product.c_stride + 16 * vec, sums[row][vec]);
  }
}

template <int kRows>
void tile(int rows, const Int8Product& product, const int32_t* x, int32_t* c) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return tile<kRows - 1>(rows, product, x, c);
  }
  tile_rows<kRows>(product, x, c);
}

void multiply(const Int8Product& product) {
  Fetch fetch(product.ahead, (product.rows + kTileRows - 1) / kTileRows);
  for_each_tile<kTileRows>(product, [&](int rows, const int32_t* x, int32_t* c) {
    fetch.some();
    tile<kTileRows>(rows, product, x, c);
  });
}

}  // namespace

extern const Int8Kernel int8_avx512vnni;
const Int8Kernel int8_avx512vnni = {Isa::avx512vnni, kTileRows, multiply, direct, kRowsOfK, kRowsOfN, store};

}  // namespace anynpu
