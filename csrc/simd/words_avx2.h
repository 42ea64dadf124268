// SPDX-License-Identifier: Apache-2.0
// Products of 16-bit integers in AVX2, included after vec_avx2.h. A lane of Words is a pair of them.
#pragma once

#include "simd/pairs_avx2.h"

namespace anynpu {
namespace {

typedef __m256i Words;
typedef __m256i Ints;

inline Ints zero_ints() { return _mm256_setzero_si256(); }
inline Words broadcast_pair(const int16_t* from) {
  int32_t pair;
  memcpy(&pair, from, sizeof(pair));
  return _mm256_set1_epi32(pair);
}
inline Words load_words(const int16_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
inline Ints load_ints(const int32_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
inline Ints add_ints(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
inline void store_ints(int32_t* to, Ints value) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), value); }
// Pairs of int8.
inline Words load_pairs(const int8_t* from) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
// Words of two rows, paired; in each 128 bits of `low` and `high` those of four columns, which order_columns() sorts.
inline void pair_words(Words a, Words b, Words& low, Words& high) {
  low = _mm256_unpacklo_epi16(a, b);
  high = _mm256_unpackhi_epi16(a, b);
}
inline void order_columns(Ints& low, Ints& high) {
  const Ints first = _mm256_permute2x128_si256(low, high, 0x20);
  high = _mm256_permute2x128_si256(low, high, 0x31);
  low = first;
}
// In each lane the sum of the products of its pair.
inline Ints pair_products(Words a, Words b) { return _mm256_madd_epi16(a, b); }
// first += pair_products(factor, a), second += pair_products(factor, b). GCC 12 spills the accumulators of the
// intrinsics; the operands tied here stay where they are. Products before sums: Zen 3 takes 10 % longer when they
// alternate.
inline void add_pair_products(Ints& first, Ints& second, Words factor, Words a, Words b) {
  __m256i product;
  asm("vpmaddwd %5, %2, %3\n\tvpmaddwd %4, %2, %2\n\tvpaddd %2, %0, %0\n\tvpaddd %3, %1, %1"
      : "+x"(first), "+x"(second), "+x"(factor), "=&x"(product)
      : "x"(a), "x"(b));
}
inline void add_pair_products(Ints& first, Ints& second, const int16_t* factor, Words a, Words b) {
  __m256i first_product, second_product;
  asm("vpmaddwd %4, %5, %2\n\tvpmaddwd %4, %6, %3\n\tvpaddd %2, %0, %0\n\tvpaddd %3, %1, %1"
      : "+x"(first), "+x"(second), "=&x"(first_product), "=&x"(second_product)
      : "m"(*reinterpret_cast<const __m256i_u*>(factor)), "x"(a), "x"(b));
}
// The sums of the lanes of four vectors, two and two.
inline void store_int_sums(int32_t* low, int32_t* high, Ints a, Ints b, Ints c, Ints d) {
  const auto halves = [](Ints x, Ints y) {  // in each 128 bits, two partial sums of x and two of y
    return _mm256_add_epi32(_mm256_blend_epi32(x, y, 0xcc), _mm256_alignr_epi8(y, x, 8));
  };
  const __m256 ab = _mm256_castsi256_ps(halves(a, b)), cd = _mm256_castsi256_ps(halves(c, d));
  const __m256i even = _mm256_castps_si256(_mm256_shuffle_ps(ab, cd, 0x88));
  const __m256i odd = _mm256_castps_si256(_mm256_shuffle_ps(ab, cd, 0xdd));
  const __m256i quads = _mm256_add_epi32(even, odd);
  const __m128i sums = _mm_add_epi32(_mm256_castsi256_si128(quads), _mm256_extracti128_si256(quads, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(low), sums);
  _mm_storeh_pd(reinterpret_cast<double*>(high), _mm_castsi128_pd(sums));
}
inline Vec float_of_ints(Ints value) { return _mm256_cvtepi32_ps(value); }
// Rounded to nearest; within int16. NaN gives anything.
inline void store_words(int16_t* to, Vec value) {
  const __m256i ints = _mm256_cvtps_epi32(value);
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(ints), _mm256_extracti128_si256(ints, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), words);
}

}  // namespace
}  // namespace anynpu
