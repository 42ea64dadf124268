// SPDX-License-Identifier: Apache-2.0
// Without VNNI: bytes become words, because the byte product of AVX2 saturates.
#include "simd/products_avx2.h"
#include "simd/vec_avx2.h"

#include "gemm/gemm.h"
#include "gemm/words_avx2.inc"
#include "ops/quant_matmul/direct_avx2.inc"
#include "ops/quant_matmul/nibbles_avx2.inc"
#include "ops/quant_matmul/store_avx2.inc"

namespace anynpu {
namespace {

template <int kRows, int kVecs>
inline void add_to(const __m256i (&sums)[kRows][kVecs], int64_t c_stride, int32_t* c) {
  for (int row = 0; row < kRows; ++row) {
    for (int vec = 0; vec < kVecs; ++vec) {
      int32_t* to = c + row * c_stride + 8 * vec;
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_add_epi32(load_bytes(to), sums[row][vec]));
    }
  }
}

// The steps of a panel in a tile of x as words, [steps][rows][even, odd].
struct TileWords {
  alignas(32) int32_t words[kSpan / 4 * kWordRows * 2];
  TileWords(const int32_t* x, int64_t count) {
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) {
      const __m256i bytes = load_bytes(x + i);
      const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8), odd = _mm256_srai_epi16(bytes, 8);
      const __m256i low = _mm256_unpacklo_epi32(even, odd), high = _mm256_unpackhi_epi32(even, odd);
      store_bytes(words + 2 * i, _mm256_permute2x128_si256(low, high, 0x20));
      store_bytes(words + 2 * i + 8, _mm256_permute2x128_si256(low, high, 0x31));
    }
    for (; i < count; ++i) {
      const __m128i bytes = _mm_cvtsi32_si128(x[i]);
      words[2 * i] = _mm_cvtsi128_si32(_mm_srai_epi16(_mm_slli_epi16(bytes, 8), 8));
      words[2 * i + 1] = _mm_cvtsi128_si32(_mm_srai_epi16(bytes, 8));
    }
  }
};

// A panel for one row or two: weights become words in registers.
template <int kRows>
void few_rows(const Int8Product& product) {
  constexpr int kVecs = 8 / kRows;
  const TileWords x(product.x + product.first_step * kRows, product.steps * kRows);
  for (int64_t column = 0; column < 64; column += 8 * kVecs) {
    __m256i sums[kRows][kVecs] = {};
    const uint8_t* half = product.panel.data + column / 32 * product.panel.half_bytes;
    for (int64_t step = 0; step < product.steps; ++step, half += product.panel.step_bytes) {
#pragma GCC unroll 8
      for (int vec = 0; vec < kVecs; ++vec) {
        const __m256i bytes = load_bytes(half + vec / 4 * product.panel.half_bytes + vec % 4 * 32);
        const __m256i even = even_words(bytes), odd = odd_words(bytes);
#pragma GCC unroll 2
        for (int row = 0; row < kRows; ++row) {
          const int32_t* words = x.words + 2 * (step * kRows + row);
          add_word_products(sums[row][vec], _mm256_set1_epi32(words[0]), even);
          add_word_products(sums[row][vec], _mm256_set1_epi32(words[1]), odd);
        }
      }
    }
    add_to(sums, product.c_stride, product.c + column);
  }
}

template <int kRows>
void tile_columns(const __m256i* words, int64_t steps, const TileWords& x, int64_t c_stride, int32_t* c) {
  __m256i sums[kRows][2] = {};
  add_word_tile(words, steps, x.words, sums);
  add_to(sums, c_stride, c);
}

template <int kRows>
void tile(int rows, const Int8Product& product, const __m256i* words, const int32_t* x, int32_t* c, Fetch* fetch) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return tile<kRows - 1>(rows, product, words, x, c, fetch);
  }
  const TileWords values(x, product.steps * kRows);
  // Of the next tile, which lies too far from this one to be fetched by itself.
  for (int64_t i = 0; i < product.steps * kRows; i += 16) _mm_prefetch(x + kRows * product.row_steps + i, _MM_HINT_T0);
  for (int64_t column = 0; column < kPanelColumns; column += kWordColumns, words += product.steps * kVectorsOfStep) {
    fetch->some();
    tile_columns<kRows>(words, product.steps, values, product.c_stride, c + column);
  }
}

void multiply(const Int8Product& product) {
  if (product.rows == 1) return few_rows<1>(product);
  if (product.rows == 2) return few_rows<2>(product);
  __m256i words[kMostWords];
  to_words(product.panel, product.steps, 0, words);
  Fetch fetch(product.ahead, (product.rows + kWordRows - 1) / kWordRows * (kPanelColumns / kWordColumns));
  for_each_tile<kWordRows>(
      product, [&](int rows, const int32_t* x, int32_t* c) { tile<kWordRows>(rows, product, words, x, c, &fetch); });
}

}  // namespace

extern const Int8Kernel int8_avx2;
const Int8Kernel int8_avx2 = {Isa::avx2, 0,        kWordRows,   1,        kSpan,
                              kSpan,     kAnyRows, kCachedSums, multiply, multiply_nibbles,
                              direct,    kRowsOfK, kRowsOfN,    sum,      store};

}  // namespace anynpu
