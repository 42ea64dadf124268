// SPDX-License-Identifier: Apache-2.0
// Panels are multiplied as they are; few rows of x and weights as they lie become words, as in AVX2.
#include "simd/products_avxvnni.h"
#include "simd/vec_avx2.h"

#include "ops/quant_matmul/direct_avx2.inc"
#include "ops/quant_matmul/nibbles_avx2.inc"
#include "ops/quant_matmul/store_avx2.inc"

namespace anynpu {
namespace {

// The registers hold the sums of so many rows of 16 columns, or of fewer rows of more.
constexpr int kTileRows = 6;
// Like those of AVX-512: a panel of so many k lies in the second cache, long runs are what memory reads fastest, sums stay in
// the nearest cache.
constexpr int64_t kPanelK = 1024;
constexpr int64_t kStreamK = 4096;
constexpr int64_t kProductRows = 48;
constexpr int64_t kWideSums = 1 << 13;
constexpr int kMemoryRows = 3;  // up to so many of them wait for cells in place
constexpr int64_t kAheadOfCells = 2048;
constexpr int64_t kDirectRows = 4;  // of x, up to which weights are multiplied as they lie

// Vectors of columns in a tile of so many rows.
template <int kRows>
constexpr int kVecs = kRows == 1   ? 8
                      : kRows <= 3 ? 4
                                   : 2;

template <int kRows>
ANYNPU_INLINE void add_step(const uint8_t* weights, const int32_t* x, __m256i (&sums)[kRows][kVecs<kRows>],
                            int64_t half_bytes) {
  __m256i bytes[kVecs<kRows>];
  ANYNPU_UNROLL
  for (int vec = 0; vec < kVecs<kRows>; ++vec) {
    const uint8_t* at = weights + vec / 4 * half_bytes + vec % 4 * kUnit;
    if (kRows <= kMemoryRows && vec % 2 == 0) _mm_prefetch(at + kAheadOfCells, _MM_HINT_T1);
    bytes[vec] = load_bytes(at);
  }
  ANYNPU_UNROLL
  for (int row = 0; row < kRows; ++row) {
    const __m256i value = _mm256_set1_epi32(x[row]);
    ANYNPU_UNROLL
    for (int vec = 0; vec < kVecs<kRows>; ++vec) add_byte_products(sums[row][vec], bytes[vec], value);
  }
}

template <int kRows>
void tile_columns(const Int8Product& product, int64_t column, const int32_t* x, int32_t* c) {
  __m256i sums[kRows][kVecs<kRows>];
  ANYNPU_UNROLL
  for (int row = 0; row < kRows; ++row) {
    ANYNPU_UNROLL
    for (int vec = 0; vec < kVecs<kRows>; ++vec) sums[row][vec] = load_bytes(c + row * product.c_stride + 8 * vec);
  }
  const Panel& panel = product.panel;
  const uint8_t* weights = panel.data + column / 32 * panel.half_bytes + column % 32 * 4;
  for (int64_t step = 0; step < product.steps; ++step, weights += panel.step_bytes, x += kRows) {
    add_step<kRows>(weights, x, sums, panel.half_bytes);
  }
  ANYNPU_UNROLL
  for (int row = 0; row < kRows; ++row) {
    ANYNPU_UNROLL
    for (int vec = 0; vec < kVecs<kRows>; ++vec) store_bytes(c + row * product.c_stride + 8 * vec, sums[row][vec]);
  }
}

template <int kRows>
void tile(int rows, const Int8Product& product, const int32_t* x, int32_t* c, Fetch* fetch) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return tile<kRows - 1>(rows, product, x, c, fetch);
  }
  for (int64_t column = 0; column < kPanelColumns; column += 8 * kVecs<kRows>) {
    fetch->some();
    tile_columns<kRows>(product, column, x, c + column);
  }
}

void multiply(const Int8Product& product) {
  const int64_t tiles = (product.rows + kTileRows - 1) / kTileRows;
  Fetch fetch(product.ahead, tiles * kPanelColumns / (8 * kVecs<kTileRows>));
  for_each_tile<kTileRows>(
      product, [&](int rows, const int32_t* x, int32_t* c) { tile<kTileRows>(rows, product, x, c, &fetch); });
}

}  // namespace

extern const Int8Kernel int8_avxvnni;
const Int8Kernel int8_avxvnni = {
    Isa::avxvnni,     0,      kTileRows,   1,           kPanelK, kStreamK, kProductRows, kWideSums, multiply,
    multiply_nibbles, direct, kDirectRows, kDirectRows, sum,     store};

}  // namespace anynpu
