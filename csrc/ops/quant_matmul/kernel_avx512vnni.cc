// SPDX-License-Identifier: Apache-2.0
#include "simd/dot_avx512.h"
#include "simd/vec_avx512vnni.h"

#include "ops/quant_matmul/direct_avx512.inc"
#include "ops/quant_matmul/nibbles_avx512.inc"
#include "ops/quant_matmul/store_avx512.inc"

namespace anynpu {
namespace {

constexpr int kTileRows = 6;  // six rows of 64 columns fill the registers
// Sums stay in the registers for so many k, since reading panels from the second cache costs nothing.
constexpr int64_t kPanelK = 1024;
constexpr int64_t kStreamK = 4096;  // long runs are what memory reads fastest
constexpr int kMemoryRows = 3;      // up to so many of them wait for cells in place
constexpr int64_t kAheadOfCells = 2048;
constexpr int64_t kProductRows = 48;    // whose sums stay in the nearest cache until they are stored
constexpr int64_t kWideSums = 1 << 13;  // likewise: wider tasks have shorter panels, which meet them more often

template <int kRows>
inline __attribute__((always_inline)) void add_step(const Panel& panel, const int32_t* x, __m512i (&sums)[kRows][4]) {
  __m512i weights[4];
#pragma GCC unroll 4
  for (int vec = 0; vec < 4; ++vec) {
    const uint8_t* at = panel.data + vec / 2 * panel.half_bytes + vec % 2 * 64;
    if (kRows <= kMemoryRows) _mm_prefetch(at + kAheadOfCells, _MM_HINT_T1);
    weights[vec] = _mm512_loadu_si512(at);
  }
#pragma GCC unroll 6
  for (int row = 0; row < kRows; ++row) {
    const __m512i value = _mm512_set1_epi32(x[row * kUnitSteps]);
#pragma GCC unroll 4
    for (int vec = 0; vec < 4; ++vec) dot_bytes(sums[row][vec], weights[vec], value);
  }
}

template <int kRows>
void tile_rows(const Int8Product& product, const int32_t* x, int32_t* c, Fetch* fetch) {
  __m512i sums[kRows][4];
#pragma GCC unroll 6
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 4
    for (int vec = 0; vec < 4; ++vec) sums[row][vec] = _mm512_loadu_si512(c + row * product.c_stride + 16 * vec);
  }
  Panel panel = product.panel;
  for (int64_t left = product.steps; left > 0; left -= kUnitSteps, x += kRows * kUnitSteps) {
    fetch->some();
    for (int64_t step = 0; step < (left < kUnitSteps ? left : kUnitSteps); ++step, panel.data += panel.step_bytes) {
      add_step<kRows>(panel, x + step, sums);
    }
  }
#pragma GCC unroll 6
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 4
    for (int vec = 0; vec < 4; ++vec) _mm512_storeu_si512(c + row * product.c_stride + 16 * vec, sums[row][vec]);
  }
}

template <int kRows>
void tile(int rows, const Int8Product& product, const int32_t* x, int32_t* c, Fetch* fetch) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return tile<kRows - 1>(rows, product, x, c, fetch);
  }
  tile_rows<kRows>(product, x, c, fetch);
}

void multiply(const Int8Product& product) {
  const int64_t tiles = (product.rows + kTileRows - 1) / kTileRows,
                units = (product.steps + kUnitSteps - 1) / kUnitSteps;
  Fetch fetch(product.ahead, tiles * units);
  for_each_tile<kTileRows>(
      product, [&](int rows, const int32_t* x, int32_t* c) { tile<kTileRows>(rows, product, x, c, &fetch); });
}

}  // namespace

extern const Int8Kernel int8_avx512vnni;
const Int8Kernel int8_avx512vnni = {
    Isa::avx512vnni,  0,      kTileRows, kUnitSteps, kPanelK,     kStreamK,          kProductRows, kWideSums, multiply,
    multiply_nibbles, direct, kRowsOfK,  kRowsOfN,   sum_by_dots, store_in_registers};

}  // namespace anynpu
