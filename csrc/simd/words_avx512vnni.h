// SPDX-License-Identifier: Apache-2.0
// Products of 16-bit integers in AVX-512 VNNI, included after vec_avx512vnni.h. A lane of Words is a pair of them.
#pragma once

#include "simd/dot_avx512.h"
#include "simd/pairs_avx2.h"

namespace anynpu {
namespace {

typedef __m512i Words;
typedef __m512i Ints;

inline Ints zero_ints() { return _mm512_setzero_si512(); }
inline Words broadcast_pair(const int16_t* from) {
  int32_t pair;
  memcpy(&pair, from, sizeof(pair));
  return _mm512_set1_epi32(pair);
}
inline Words load_words(const int16_t* from) { return _mm512_loadu_si512(from); }
inline Ints load_ints(const int32_t* from) { return _mm512_loadu_si512(from); }
inline Ints add_ints(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
inline void store_ints(int32_t* to, Ints value) { _mm512_storeu_si512(to, value); }
// Pairs of int8.
inline Words load_pairs(const int8_t* from) {
  return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
// Words of two rows, paired; in each 128 bits of `low` and `high` those of four columns, which order_columns() sorts.
inline void pair_words(Words a, Words b, Words& low, Words& high) {
  low = _mm512_unpacklo_epi16(a, b);
  high = _mm512_unpackhi_epi16(a, b);
}
inline void order_columns(Ints& low, Ints& high) {
  const Ints first = _mm512_permutex2var_epi64(low, _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), high);
  high = _mm512_permutex2var_epi64(low, _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15), high);
  low = first;
}
// In each lane the sum of the products of its pair.
inline Ints pair_products(Words a, Words b) { return _mm512_madd_epi16(a, b); }
// first += pair_products(factor, a), second += pair_products(factor, b).
inline void add_pair_products(Ints& first, Ints& second, Words factor, Words a, Words b) {
  dot_words(first, factor, a);
  dot_words(second, factor, b);
}
inline void add_pair_products(Ints& first, Ints& second, const int16_t* factor, Words a, Words b) {
  add_pair_products(first, second, load_words(factor), a, b);
}
// The sums of the lanes of four vectors, two and two.
inline void store_int_sums(int32_t* low, int32_t* high, Ints a, Ints b, Ints c, Ints d) {
  const auto pairs = [](Ints x, Ints y) {
    return _mm512_add_epi32(_mm512_unpacklo_epi32(x, y), _mm512_unpackhi_epi32(x, y));
  };
  const Ints quads = pairs(pairs(a, c), pairs(b, d));  // in each 128 bits a share of the four sums
  const __m256i halves = _mm256_add_epi32(_mm512_castsi512_si256(quads), _mm512_extracti64x4_epi64(quads, 1));
  const __m128i sums = _mm_add_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(low), sums);
  _mm_storeh_pd(reinterpret_cast<double*>(high), _mm_castsi128_pd(sums));
}
inline Vec float_of_ints(Ints value) { return _mm512_cvtepi32_ps(value); }
// Rounded to nearest; within int16. NaN gives anything.
inline void store_words(int16_t* to, Vec value) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(value)));
}

}  // namespace
}  // namespace anynpu
