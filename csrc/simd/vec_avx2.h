// SPDX-License-Identifier: Apache-2.0
// Vectors of floats in AVX2 + FMA + F16C.
#pragma once

#include <immintrin.h>

#include "simd/scalar.h"

namespace anynpu {
namespace {

typedef __m256 Vec;
constexpr int kLanes = 8;

inline Vec load(const float* from) { return _mm256_loadu_ps(from); }
inline void store(float* to, Vec value) { _mm256_storeu_ps(to, value); }
inline Vec broadcast(float value) { return _mm256_set1_ps(value); }
inline Vec multiply_add(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
inline Vec subtract(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
inline Vec multiply(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
inline Vec divide(Vec a, Vec b) { return _mm256_div_ps(a, b); }

// b where either is NaN.
inline Vec maximum(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Vec minimum(Vec a, Vec b) { return _mm256_min_ps(a, b); }
inline Vec absolute(Vec value) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), value); }
inline float largest(Vec value) {
  const __m128 quad = _mm_max_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
  const __m128 pair = _mm_max_ps(quad, _mm_movehl_ps(quad, quad));
  return _mm_cvtss_f32(_mm_max_ss(pair, _mm_movehdup_ps(pair)));
}
// value * 2^n for n = exponent - 1.5 * 2^23, as a rounding addition of that constant leaves it.
inline Vec shift_exponent(Vec value, Vec exponent) {
  const __m256i shift = _mm256_slli_epi32(_mm256_castps_si256(exponent), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(value), shift));
}
// The sums of the lanes of four vectors.
inline void store_sums(float* to, const Vec (&parts)[4]) {
  const Vec quads = _mm256_hadd_ps(_mm256_hadd_ps(parts[0], parts[1]), _mm256_hadd_ps(parts[2], parts[3]));
  _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(quads), _mm256_extractf128_ps(quads, 1)));
}

inline Vec load_int8(const int8_t* from) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
}
inline Vec load_int32(const int32_t* from) {
  return _mm256_cvtepi32_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
// a + b, exact before the one rounding to float also where it leaves the range of int32.
inline Vec load_int32_sum(const int32_t* from_a, const int32_t* from_b) {
  const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from_a));
  const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from_b));
  const __m256i sum = _mm256_add_epi32(a, b);
  const __m256i flipped = _mm256_and_si256(_mm256_xor_si256(sum, a), _mm256_xor_si256(sum, b));
  if (_mm256_movemask_ps(_mm256_castsi256_ps(flipped)) == 0) return _mm256_cvtepi32_ps(sum);
  float lanes[kLanes];
  for (int i = 0; i < kLanes; ++i) lanes[i] = static_cast<float>(int64_t{from_a[i]} + from_b[i]);
  return load(lanes);
}

// The bits of `mask` from bit `first` on of each of kLanes dwords, as a float.
inline Vec float_of_bits(const uint8_t* from, int first, int mask) {
  const __m256i dwords = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  const __m256i shifted = _mm256_srl_epi32(dwords, _mm_cvtsi32_si128(first));
  return _mm256_cvtepi32_ps(_mm256_and_si256(shifted, _mm256_set1_epi32(mask)));
}

inline Vec load_half(const uint16_t* from) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
inline Vec load_bf16(const uint16_t* from) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
inline void store_half(uint16_t* to, Vec value) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
}
inline void store_bf16(uint16_t* to, Vec value) {
  const __m256i bits = _mm256_castps_si256(value);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i result = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(result, result), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(packed));
}
inline void store_int8(int8_t* to, Vec value) {
  const Vec number = _mm256_and_ps(value, _mm256_cmp_ps(value, value, _CMP_ORD_Q));
  const __m256i codes = _mm256_cvtps_epi32(_mm256_min_ps(number, _mm256_set1_ps(127.0f)));
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(codes), _mm256_extracti128_si256(codes, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packs_epi16(words, words));
}
// Of magnitudes up to 127.5; NaN gives 0.
inline void store_codes(int8_t* to, const Vec (&values)[4]) {
  const auto words = [](Vec a, Vec b) { return _mm256_packs_epi32(_mm256_cvtps_epi32(a), _mm256_cvtps_epi32(b)); };
  const __m256i bytes = _mm256_packs_epi16(words(values[0], values[1]), words(values[2], values[3]));
  const __m256i nan = _mm256_cmpeq_epi8(bytes, _mm256_set1_epi8(-128));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const __m256i codes = _mm256_permutevar8x32_epi32(_mm256_andnot_si256(nan, bytes), order);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), codes);
}

}  // namespace
}  // namespace anynpu
