// SPDX-License-Identifier: Apache-2.0
// Integer products of the tier AVX2, 256 bits wide. Kernel units include this or products_avxvnni.h first.
//
// GCC 12 spills the accumulators of the intrinsics; the operands tied here stay where they are.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace anynpu {
namespace {

// sum += the products of two words a lane. The byte product of AVX2 saturates, the word product does not.
inline __attribute__((always_inline)) void add_word_products(__m256i& sum, __m256i a, __m256i b) {
  __m256i product;
  asm("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0" : "+x"(sum), "=&x"(product) : "x"(a), "x"(b));
}

// Partial sums of bytes up to 15 times int8, four a lane: two words, which hold those of so many steps. A product and its
// neighbour add up to at most 2 * 15 * 128 = 3840 in magnitude.
constexpr int64_t kPartialSteps = 8;

inline __attribute__((always_inline)) void add_nibble_products(__m256i& partial, __m256i nibbles, __m256i x) {
  __m256i product;
  asm("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0" : "+x"(partial), "=&x"(product) : "x"(nibbles), "x"(x));
}
inline __m256i first_nibble_products(__m256i nibbles, __m256i x) { return _mm256_maddubs_epi16(nibbles, x); }
// The sum of a lane, and 256 times it.
inline __m256i lane_sums(__m256i partial) { return _mm256_madd_epi16(partial, _mm256_set1_epi16(1)); }
inline __m256i lane_sums_256(__m256i partial) { return _mm256_madd_epi16(partial, _mm256_set1_epi16(256)); }

}  // namespace
}  // namespace anynpu
