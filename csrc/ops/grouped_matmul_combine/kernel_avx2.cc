// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>

#include "ops/grouped_matmul_combine/kernel.inc"

namespace anynpu {
namespace {

constexpr int kTileRows = 4;
// Products of bytes up to 15 with int8 add up to at most 2 * 15 * 128 a word and step, so 8 steps stay within int16;
// and 8 bytes up to 15 stay within a byte.
constexpr int64_t kSteps = 8;
constexpr int64_t kPanelsAhead = 4;  // fetched before they are read, so that lines arrive in time

inline __m256i load_bytes(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
inline void store_bytes(void* to, __m256i value) { _mm256_storeu_si256(static_cast<__m256i*>(to), value); }
inline __m256i low_nibbles(__m256i bytes) { return _mm256_and_si256(bytes, _mm256_set1_epi8(15)); }

// Panels of this unit are [steps][4 pairs of vectors]. The pair i comes from the bytes 4 i to 4 i + 3 and 16 + 4 i to
// 16 + 4 i + 3 of four rows of k; its first vector has their low nibbles, the even columns, its second the odd ones.
inline void unpack_step(const uint8_t* from, const uint8_t* ahead, int64_t row_bytes, __m256i* pairs) {
  const __m256i flip = _mm256_set1_epi8(static_cast<char>(0x88));
  __m256i rows[4];
  for (int row = 0; row < 4; ++row) {
    _mm_prefetch(reinterpret_cast<const char*>(ahead + row * row_bytes), _MM_HINT_T0);
    rows[row] = _mm256_xor_si256(load_bytes(from + row * row_bytes), flip);
  }
  const __m256i low01 = _mm256_unpacklo_epi8(rows[0], rows[1]), high01 = _mm256_unpackhi_epi8(rows[0], rows[1]);
  const __m256i low23 = _mm256_unpacklo_epi8(rows[2], rows[3]), high23 = _mm256_unpackhi_epi8(rows[2], rows[3]);
  pairs[0] = _mm256_unpacklo_epi16(low01, low23);
  pairs[1] = _mm256_unpackhi_epi16(low01, low23);
  pairs[2] = _mm256_unpacklo_epi16(high01, high23);
  pairs[3] = _mm256_unpackhi_epi16(high01, high23);
}

// Adds the sums of pair `pair` to the columns where they belong: words of two k of the even and of the odd columns.
inline void add_pair(__m256i even, __m256i odd, int pair, int32_t* columns) {
  const __m256i ones = _mm256_set1_epi16(1);
  const __m256i evens = _mm256_madd_epi16(even, ones), odds = _mm256_madd_epi16(odd, ones);
  const __m256i low = _mm256_unpacklo_epi32(evens, odds), high = _mm256_unpackhi_epi32(evens, odds);
  int32_t *first = columns + 8 * pair, *second = first + 32;
  store_bytes(first, _mm256_add_epi32(load_bytes(first), _mm256_permute2x128_si256(low, high, 0x20)));
  store_bytes(second, _mm256_add_epi32(load_bytes(second), _mm256_permute2x128_si256(low, high, 0x31)));
}

// Up to kSteps steps of a panel, and the sums of its columns.
void unpack(const uint8_t* from, const uint8_t* ahead, int64_t row_bytes, int64_t steps, uint8_t* panel,
            int32_t* column_sums) {
  __m256i sums[8] = {};
  for (int64_t step = 0; step < steps; ++step, from += 4 * row_bytes, ahead += 4 * row_bytes, panel += 256) {
    __m256i pairs[4];
    unpack_step(from, ahead, row_bytes, pairs);
#pragma GCC unroll 4
    for (int pair = 0; pair < 4; ++pair) {
      const __m256i even = low_nibbles(pairs[pair]), odd = low_nibbles(_mm256_srli_epi16(pairs[pair], 4));
      store_bytes(panel + 64 * pair, even);
      store_bytes(panel + 64 * pair + 32, odd);
      sums[2 * pair] = _mm256_add_epi8(sums[2 * pair], even);
      sums[2 * pair + 1] = _mm256_add_epi8(sums[2 * pair + 1], odd);
    }
  }
  const __m256i ones = _mm256_set1_epi8(1);
#pragma GCC unroll 4
  for (int pair = 0; pair < 4; ++pair) {
    add_pair(_mm256_maddubs_epi16(sums[2 * pair], ones), _mm256_maddubs_epi16(sums[2 * pair + 1], ones), pair,
             column_sums);
  }
}

// A panel of up to kSteps steps times up to four rows.
template <int kRows>
void tile(int rows, const uint8_t* panel, int64_t steps, const int32_t* x, int64_t c_stride, int32_t* c) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return tile<kRows - 1>(rows, panel, steps, x, c_stride, c);
  }
  for (int pair = 0; pair < 4; ++pair) {
    __m256i sums[kRows][2] = {};
    for (int64_t step = 0; step < steps; ++step) {
      const __m256i even = load_bytes(panel + 256 * step + 64 * pair);
      const __m256i odd = load_bytes(panel + 256 * step + 64 * pair + 32);
#pragma GCC unroll 4
      for (int row = 0; row < kRows; ++row) {
        const __m256i values = _mm256_set1_epi32(x[step * kRows + row]);
        sums[row][0] = _mm256_add_epi16(sums[row][0], _mm256_maddubs_epi16(even, values));
        sums[row][1] = _mm256_add_epi16(sums[row][1], _mm256_maddubs_epi16(odd, values));
      }
    }
#pragma GCC unroll 4
    for (int row = 0; row < kRows; ++row) add_pair(sums[row][0], sums[row][1], pair, c + row * c_stride);
  }
}

void multiply_panel(const Int4Product& product, const uint8_t* panel, int64_t first_step, int64_t steps, int32_t* c) {
  for (int64_t row = 0; row < product.rows; row += kTileRows) {
    const int rows = product.rows - row < kTileRows ? static_cast<int>(product.rows - row) : kTileRows;
    tile<kTileRows>(rows, panel, steps, product.x + row * product.row_steps + first_step * rows, product.c_stride,
                    c + row * product.c_stride);
  }
}

void multiply_int4(const Int4Product& product) {
  alignas(32) uint8_t panel[kSteps * 256];
  for (int64_t step = 0; step < product.steps; step += kSteps) {
    const int64_t steps = product.steps - step < kSteps ? product.steps - step : kSteps;
    const uint8_t* rows = product.weight + 4 * step * product.row_bytes;
    for (int64_t i = 0; i < product.panels; ++i) {
      // The panels ahead, and behind the last one those of the next steps.
      const int64_t next = i + kPanelsAhead;
      const uint8_t* ahead = next < product.panels ? rows + next * product.panel_bytes
                                                   : rows + 4 * kSteps * product.row_bytes +
                                                         (next - product.panels) % product.panels * product.panel_bytes;
      unpack(rows + i * product.panel_bytes, ahead, product.row_bytes, steps, panel, product.column_sums + 64 * i);
      multiply_panel(product, panel, product.first_step + step, steps, product.c + 64 * i);
    }
  }
}

}  // namespace

extern const CombineKernel combine_avx2;
const CombineKernel combine_avx2 = {Isa::avx2, kTileRows, multiply_int4, scale_group, add_row, add_shared};

}  // namespace anynpu
