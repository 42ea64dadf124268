// SPDX-License-Identifier: Apache-2.0
// Bytes of rows as pairs, for the products of words_*.h.
#pragma once

#include <immintrin.h>

namespace anynpu {
namespace {

// 32 bytes of two rows, alternately.
inline void pair_rows(const int8_t* a, const int8_t* b, int8_t* to) {
  const __m256i first = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a));
  const __m256i second = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b));
  const __m256i low = _mm256_unpacklo_epi8(first, second), high = _mm256_unpackhi_epi8(first, second);
  auto* quarters = reinterpret_cast<__m128i*>(to);
  _mm_storeu_si128(quarters, _mm256_castsi256_si128(low));
  _mm_storeu_si128(quarters + 1, _mm256_castsi256_si128(high));
  _mm_storeu_si128(quarters + 2, _mm256_extracti128_si256(low, 1));
  _mm_storeu_si128(quarters + 3, _mm256_extracti128_si256(high, 1));
}

// 16 bytes from `column` on of 16 rows, as pairs: the first ones of all rows, then, `stride` bytes on, the second ones.
inline void pair_columns(const int8_t* const (&rows)[16], int64_t column, int8_t* to, int64_t stride) {
  __m256i words[8], dwords[8], qwords[8];  // transposed in each half; the halves are rows 0 to 7 and 8 to 15
  for (int i = 0; i < 8; ++i) {
    const __m256i low = _mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[i] + column)));
    words[i] = _mm256_inserti128_si256(low, _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[i + 8] + column)), 1);
  }
  for (int i = 0; i < 4; ++i) {
    dwords[2 * i] = _mm256_unpacklo_epi16(words[2 * i], words[2 * i + 1]);
    dwords[2 * i + 1] = _mm256_unpackhi_epi16(words[2 * i], words[2 * i + 1]);
  }
  for (int i = 0; i < 2; ++i) {
    for (int half = 0; half < 2; ++half) {
      const __m256i a = dwords[4 * i + half], b = dwords[4 * i + 2 + half];
      qwords[4 * i + 2 * half] = _mm256_unpacklo_epi32(a, b);
      qwords[4 * i + 2 * half + 1] = _mm256_unpackhi_epi32(a, b);
    }
  }
  for (int i = 0; i < 4; ++i) {
    const __m256i a = qwords[i], b = qwords[4 + i];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 2 * i * stride), _mm256_unpacklo_epi64(a, b));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + (2 * i + 1) * stride), _mm256_unpackhi_epi64(a, b));
  }
}

}  // namespace
}  // namespace anynpu
