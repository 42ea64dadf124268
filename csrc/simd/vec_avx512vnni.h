// SPDX-License-Identifier: Apache-2.0
// Vectors of floats in AVX-512 F, BW, VL, DQ.
#pragma once

#include <immintrin.h>

#include "simd/scalar.h"

namespace anynpu {
namespace {

typedef __m512 Vec;
constexpr int kLanes = 16;

inline Vec load(const float* from) { return _mm512_loadu_ps(from); }
inline void store(float* to, Vec value) { _mm512_storeu_ps(to, value); }
inline Vec broadcast(float value) { return _mm512_set1_ps(value); }
inline Vec multiply_add(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec subtract(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
inline Vec multiply(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec divide(Vec a, Vec b) { return _mm512_div_ps(a, b); }

// b where either is NaN.
inline Vec maximum(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec minimum(Vec a, Vec b) { return _mm512_min_ps(a, b); }
inline Vec absolute(Vec value) { return _mm512_abs_ps(value); }
inline float largest(Vec value) { return _mm512_reduce_max_ps(value); }
// value * 2^n for n = exponent - 1.5 * 2^23, as a rounding addition of that constant leaves it.
inline Vec shift_exponent(Vec value, Vec exponent) {
  const __m512i shift = _mm512_slli_epi32(_mm512_castps_si512(exponent), 23);
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(value), shift));
}
// The sums of the lanes of four vectors.
inline void store_sums(float* to, const Vec (&parts)[4]) {
  const auto pairs = [](Vec a, Vec b) { return add(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)); };
  const Vec low = pairs(parts[0], parts[2]), high = pairs(parts[1], parts[3]);
  const Vec quads = pairs(low, high);  // in each 128 bits a share of the four sums
  const __m256 halves = _mm256_add_ps(_mm512_castps512_ps256(quads), _mm512_extractf32x8_ps(quads, 1));
  _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1)));
}

inline Vec load_int8(const int8_t* from) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}
inline Vec load_int32(const int32_t* from) { return _mm512_cvtepi32_ps(_mm512_loadu_si512(from)); }
// a + b, exact before the one rounding to float also where it leaves the range of int32.
inline Vec load_int32_sum(const int32_t* from_a, const int32_t* from_b) {
  const __m512i a = _mm512_loadu_si512(from_a);
  const __m512i b = _mm512_loadu_si512(from_b);
  const __m512i sum = _mm512_add_epi32(a, b);
  const __m512i flipped = _mm512_and_si512(_mm512_xor_si512(sum, a), _mm512_xor_si512(sum, b));
  if (_mm512_movepi32_mask(flipped) == 0) return _mm512_cvtepi32_ps(sum);
  float lanes[kLanes];
  for (int i = 0; i < kLanes; ++i) lanes[i] = static_cast<float>(int64_t{from_a[i]} + from_b[i]);
  return load(lanes);
}

// The bits of `mask` from bit `first` on of each of kLanes dwords, as a float.
inline Vec float_of_bits(const uint8_t* from, int first, int mask) {
  const __m512i shifted = _mm512_srl_epi32(_mm512_loadu_si512(from), _mm_cvtsi32_si128(first));
  return _mm512_cvtepi32_ps(_mm512_and_si512(shifted, _mm512_set1_epi32(mask)));
}

inline Vec load_half(const uint16_t* from) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
inline Vec load_bf16(const uint16_t* from) {
  const __m256i narrow = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16));
}
inline void store_half(uint16_t* to, Vec value) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
}
inline void store_bf16(uint16_t* to, Vec value) {
  const __m512i bits = _mm512_castps_si512(value);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  const __m512i result = _mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, quiet), 16);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(result));
}
inline void store_int8(int8_t* to, Vec value) {
  const __mmask16 number = _mm512_cmp_ps_mask(value, value, _CMP_ORD_Q);
  const __m512 low = _mm512_maskz_max_ps(number, value, _mm512_set1_ps(-128.0f));
  const __m512i rounded = _mm512_cvtps_epi32(_mm512_min_ps(low, _mm512_set1_ps(127.0f)));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(rounded));
}
// Of magnitudes up to 127.5; NaN gives 0, the low byte of the integer that stands for it.
inline void store_codes(int8_t* to, const Vec (&values)[4]) {
  for (int i = 0; i < 4; ++i) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to) + i, _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(values[i])));
  }
}

}  // namespace
}  // namespace anynpu
