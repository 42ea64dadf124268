// SPDX-License-Identifier: Apache-2.0
// Integer products of the tier AVX-VNNI, 256 bits wide: those of products_avx2.h, and bytes times int8.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace anynpu {
namespace {

// sum += the products of two words a lane.
inline __attribute__((always_inline)) void add_word_products(__m256i& sum, __m256i a, __m256i b) {
  sum = _mm256_dpwssd_avx_epi32(sum, a, b);
}

// sum += the products of four bytes and int8 a lane.
inline __attribute__((always_inline)) void add_byte_products(__m256i& sum, __m256i bytes, __m256i x) {
  sum = _mm256_dpbusd_avx_epi32(sum, bytes, x);
}

// Partial sums of bytes up to 15 times int8 are sums here.
constexpr int64_t kPartialSteps = 64;  // a whole panel

inline __attribute__((always_inline)) void add_nibble_products(__m256i& partial, __m256i nibbles, __m256i x) {
  add_byte_products(partial, nibbles, x);
}
inline __m256i first_nibble_products(__m256i nibbles, __m256i x) {
  return _mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), nibbles, x);
}
inline __m256i lane_sums(__m256i partial) { return partial; }
inline __m256i lane_sums_256(__m256i partial) { return _mm256_slli_epi32(partial, 8); }

}  // namespace
}  // namespace anynpu
