// SPDX-License-Identifier: Apache-2.0
#include "simd/dot_avx512.h"
#include "simd/vec_avx512vnni.h"

#include "ops/quant_matmul/direct_avx512.inc"
#include "ops/quant_matmul/store_avx512.inc"

namespace anynpu {
namespace {

constexpr int kTileRows = 6;  // six rows of 64 columns fill the registers

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
const Int8Kernel int8_avx512vnni = {Isa::avx512vnni, 0,      kTileRows, 1,        multiply,
                                    nullptr,         direct, kRowsOfK,  kRowsOfN, store};

}  // namespace anynpu
