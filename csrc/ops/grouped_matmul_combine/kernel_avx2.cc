// SPDX-License-Identifier: Apache-2.0
#include <immintrin.h>

#include "ops/grouped_matmul_combine/kernel.inc"

namespace anynpu {
namespace {

constexpr int kTileRows = 4;
// Products of bytes up to 15 with int8 add up to at most 2 * 15 * 128 a word and step, so 8 steps stay within int16;
// and 8 bytes up to 15 stay within a byte.
constexpr int kBlockSteps = 8;
constexpr int64_t kPanelsAhead = 8;  // fetched before they are read, so that lines arrive in time
constexpr int kStreamSteps = 4;      // of few rows of x: memory is read fastest along 16 rows of k at once

#define ANYNPU_INLINE inline __attribute__((always_inline))

inline __m256i load_bytes(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
inline void store_bytes(void* to, __m256i value) { _mm256_storeu_si256(static_cast<__m256i*>(to), value); }
inline __m256i low_nibbles(__m256i bytes) { return _mm256_and_si256(bytes, _mm256_set1_epi8(15)); }

// GCC adds up the intrinsics in another order, with spills; operands tied here stay where they are.
inline void add_bytes(__m256i& sum, __m256i bytes) { asm("vpaddb %1, %0, %0" : "+x"(sum) : "x"(bytes)); }
// sum += the products of unsigned bytes with the four signed ones of x, two to a word; step 0 begins a sum.
ANYNPU_INLINE void add_products(__m256i& sum, int step, __m256i bytes, int32_t x) {
  const __m256i values = _mm256_set1_epi32(x);
  __m256i products;
  if (step == 0) {
    sum = _mm256_maddubs_epi16(bytes, values);
  } else {
    asm("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0" : "+x"(sum), "=&x"(products) : "x"(bytes), "x"(values));
  }
}
// to += the pairs of words added up.
inline void flush_words(__m256i words, int32_t* to) {
  const __m256i sums = _mm256_madd_epi16(words, _mm256_set1_epi16(1));
  store_bytes(to, _mm256_add_epi32(load_bytes(to), sums));
}
inline void flush_bytes(__m256i bytes, int32_t* to) {
  flush_words(_mm256_maddubs_epi16(bytes, _mm256_set1_epi8(1)), to);
}

inline void fetch(const uint8_t* from) { _mm_prefetch(reinterpret_cast<const char*>(from), _MM_HINT_T0); }

// A panel is used as eight vectors, each four k of eight columns. The vectors 2 i and 2 i + 1 come from the bytes 4 i
// to 4 i + 3 and 16 + 4 i to 16 + 4 i + 3 of four rows of k: the low nibbles, even columns, and the high ones. Unpacked
// panels are [steps][8 vectors], sums [8 vectors] too.

// The bytes of the first two or the last two pairs.
template <int kHalf>
ANYNPU_INLINE void load_half(const __m256i* rows, __m256i* pairs) {
  const __m256i flip = _mm256_set1_epi8(static_cast<char>(0x88));
  const auto interleave = [](__m256i a, __m256i b) __attribute__((always_inline)) {
    return kHalf == 0 ? _mm256_unpacklo_epi8(a, b) : _mm256_unpackhi_epi8(a, b);
  };
  const __m256i first = interleave(rows[0], rows[1]), last = interleave(rows[2], rows[3]);
  pairs[0] = _mm256_xor_si256(_mm256_unpacklo_epi16(first, last), flip);
  pairs[1] = _mm256_xor_si256(_mm256_unpackhi_epi16(first, last), flip);
}

ANYNPU_INLINE void load_rows(const uint8_t* from, int64_t row_bytes, __m256i* rows) {
#pragma GCC unroll 4
  for (int row = 0; row < 4; ++row) rows[row] = load_bytes(from + row * row_bytes);
}

ANYNPU_INLINE __m256i vector_of(const __m256i* pairs, int vector) {
  return low_nibbles(vector % 2 == 0 ? pairs[vector / 2] : _mm256_srli_epi16(pairs[vector / 2], 4));
}

// kStreamSteps steps of half a panel times kRows rows, straight from memory.
template <int kRows, int kHalf>
ANYNPU_INLINE void stream_half(const uint8_t* from, int64_t row_bytes, const int32_t* x, int32_t* c,
                               int32_t* column_sums) {
  __m256i sums[kRows][4], bytes[4];
#pragma GCC unroll 4
  for (int step = 0; step < kStreamSteps; ++step) {
    __m256i rows[4], pairs[2];
    load_rows(from + 4 * step * row_bytes, row_bytes, rows);
    load_half<kHalf>(rows, pairs);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m256i weights = vector_of(pairs, i);
      step == 0 ? void(bytes[i] = weights) : add_bytes(bytes[i], weights);
#pragma GCC unroll 2
      for (int row = 0; row < kRows; ++row) add_products(sums[row][i], step, weights, x[step * kRows + row]);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    flush_bytes(bytes[i], column_sums + 8 * i);
#pragma GCC unroll 2
    for (int row = 0; row < kRows; ++row) flush_words(sums[row][i], c + 64 * row + 8 * i);
  }
}

// Panels of neighbours share cache lines, those of FRACTAL_NZ do not.
inline int64_t panels_together(const Int4Product& product) { return product.panel_bytes == 32 ? 2 : 1; }

// The panel kPanelsAhead after `index` in the rows of `step`, or behind the last one in the rows `steps` later.
const uint8_t* panel_ahead(const Int4Product& product, int64_t index, int64_t step, int64_t steps) {
  const int64_t next = index + kPanelsAhead, behind = next - product.panels;
  const uint8_t* rows = product.weight + 4 * step * product.row_bytes;
  if (behind < 0) return rows + next * product.panel_bytes;
  return rows + 4 * steps * product.row_bytes + behind % product.panels * product.panel_bytes;
}

template <int kRows>
void stream(const Int4Product& product) {
  for (int64_t step = 0; step < product.steps; step += kStreamSteps) {
    const uint8_t* rows = product.weight + 4 * step * product.row_bytes;
    const int32_t* x = product.x + (product.first_step + step) * kRows;
    for (int64_t index = 0; index < product.panels; ++index) {
      if (index % panels_together(product) == 0) {
        const uint8_t* ahead = panel_ahead(product, index, step, kStreamSteps);
        for (int row = 0; row < 4 * kStreamSteps; ++row) fetch(ahead + row * product.row_bytes);
      }
      const uint8_t* from = rows + index * product.panel_bytes;
      int32_t *c = product.c + index * kRows * 64, *column_sums = product.column_sums + index * 64;
      stream_half<kRows, 0>(from, product.row_bytes, x, c, column_sums);
      stream_half<kRows, 1>(from, product.row_bytes, x, c + 32, column_sums + 32);
    }
  }
}

// A block of a panel, and the sums of its columns.
void unpack(const uint8_t* from, int64_t row_bytes, uint8_t* panel, int32_t* column_sums) {
  __m256i sums[8] = {};
  for (int step = 0; step < kBlockSteps; ++step, from += 4 * row_bytes, panel += 256) {
    __m256i rows[4], pairs[4];
    load_rows(from, row_bytes, rows);
    load_half<0>(rows, pairs);
    load_half<1>(rows, pairs + 2);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      const __m256i weights = vector_of(pairs, i);
      store_bytes(panel + 32 * i, weights);
      add_bytes(sums[i], weights);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) flush_bytes(sums[i], column_sums + 8 * i);
}

// Cache lines of rows of k that are fetched a few at a time, so that memory works while products are computed.
struct Ahead {
  const uint8_t* at;
  int64_t row_bytes;
  int64_t at_once;
  int64_t left;

  void fetch_some() {
    for (int64_t i = 0; i < at_once && left > 0; ++i, --left, at += row_bytes) fetch(at);
  }
};

// A block of a panel times up to kRows rows.
template <int kRows>
void multiply_tile(int rows, const uint8_t* panel, const int32_t* x, int32_t* c, Ahead& ahead) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return multiply_tile<kRows - 1>(rows, panel, x, c, ahead);
  }
  for (int pair = 0; pair < 4; ++pair, panel += 64, c += 16) {
    ahead.fetch_some();
    __m256i sums[kRows][2];
#pragma GCC unroll 8
    for (int step = 0; step < kBlockSteps; ++step) {
      const __m256i even = load_bytes(panel + 256 * step), odd = load_bytes(panel + 256 * step + 32);
#pragma GCC unroll 4
      for (int row = 0; row < kRows; ++row) {
        add_products(sums[row][0], step, even, x[step * kRows + row]);
        add_products(sums[row][1], step, odd, x[step * kRows + row]);
      }
    }
#pragma GCC unroll 4
    for (int row = 0; row < kRows; ++row) {
      flush_words(sums[row][0], c + 64 * row);
      flush_words(sums[row][1], c + 64 * row + 8);
    }
  }
}

// A block of one or two panels.
void multiply_panels(const Int4Product& product, int64_t first, int64_t count, int64_t step) {
  alignas(32) uint8_t panels[2][kBlockSteps * 256];
  const uint8_t* from = product.weight + first * product.panel_bytes + 4 * step * product.row_bytes;
  for (int64_t i = 0; i < count; ++i) {
    unpack(from + i * product.panel_bytes, product.row_bytes, panels[i], product.column_sums + (first + i) * 64);
  }
  const int64_t tiles = (product.rows + kTileRows - 1) / kTileRows;
  Ahead ahead = {panel_ahead(product, first, step, kBlockSteps), product.row_bytes,
                 (kBlockSteps + count * tiles - 1) / (count * tiles), 4 * kBlockSteps};
  const int32_t* x = product.x + (product.first_step + step) * product.rows;
  for (int64_t i = 0; i < count; ++i) {
    int32_t* c = product.c + (first + i) * product.rows * 64;
    for (int64_t row = 0; row < product.rows; row += kTileRows) {
      const int rows = product.rows - row < kTileRows ? static_cast<int>(product.rows - row) : kTileRows;
      multiply_tile<kTileRows>(rows, panels[i], x + kBlockSteps * row, c + 64 * row, ahead);
    }
  }
}

void multiply_int4(const Int4Product& product) {
  if (product.rows == 1) return stream<1>(product);
  if (product.rows == 2) return stream<2>(product);
  const int64_t together = panels_together(product);
  for (int64_t step = 0; step < product.steps; step += kBlockSteps) {
    for (int64_t first = 0; first < product.panels; first += together) {
      multiply_panels(product, first, product.panels - first < together ? 1 : together, step);
    }
  }
}

// The two vectors of a pair -> columns 8 i to 8 i + 7 and 32 + 8 i to 32 + 8 i + 7.
inline void to_columns(__m256i even, __m256i odd, __m256i* columns) {
  const __m256i low = _mm256_unpacklo_epi32(even, odd), high = _mm256_unpackhi_epi32(even, odd);
  columns[0] = _mm256_permute2x128_si256(low, high, 0x20);
  columns[1] = _mm256_permute2x128_si256(low, high, 0x31);
}

void scale_int4(const GroupSums& group) {
  for (int64_t row = 0; row < group.rows; ++row) {
    const __m256i of_row = _mm256_set1_epi32(group.of_row[row]);
    for (int64_t column = 0; column < group.columns; column += 64) {
      int32_t* sums = group.sums + column * group.rows + 64 * row;
      for (int pair = 0; pair < 4; ++pair, sums += 16) {
        __m256i parts[2];
        for (int i = 0; i < 2; ++i) {
          const __m256i of_column = load_bytes(group.of_column + column + 16 * pair + 8 * i);
          parts[i] = _mm256_sub_epi32(_mm256_sub_epi32(load_bytes(sums + 8 * i), of_row), of_column);
          store_bytes(sums + 8 * i, _mm256_setzero_si256());
        }
        to_columns(parts[0], parts[1], parts);
        for (int i = 0; i < 2; ++i) {
          const int64_t first = column + 8 * pair + 32 * i;
          float* values = group.values + row * group.stride + first;
          const __m256 products = _mm256_mul_ps(_mm256_cvtepi32_ps(parts[i]), _mm256_loadu_ps(group.scale + first));
          _mm256_storeu_ps(values, _mm256_add_ps(_mm256_loadu_ps(values), products));
        }
      }
    }
  }
}

}  // namespace

extern const CombineKernel combine_avx2;
const CombineKernel combine_avx2 = {Isa::avx2,  kTileRows,   kBlockSteps, multiply_int4,
                                    scale_int4, scale_group, add_row,     add_shared};

}  // namespace anynpu
