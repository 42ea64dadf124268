// SPDX-License-Identifier: Apache-2.0
#define ANYNPU_KERNEL_TIER avx2
#define ANYNPU_PACK pack_vectors

#include <immintrin.h>

#include "ops/int4_pack/int4_pack.h"

namespace anynpu {
namespace {

int32_t pack(const int32_t* __restrict values, int64_t count, uint8_t* __restrict packed);

// 32 values -> 16 words of two nibbles: the lower lane holds the first two of each eight values, the upper one the last two.
inline __m256i narrow(const int32_t* values, __m256i* outside) {
  __m256i eight[4];
  for (int i = 0; i < 4; ++i) {
    eight[i] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values + 8 * i));
    *outside = _mm256_or_si256(*outside, _mm256_add_epi32(eight[i], _mm256_set1_epi32(8)));
  }
  const __m256i low = _mm256_packs_epi32(eight[0], eight[1]), high = _mm256_packs_epi32(eight[2], eight[3]);
  const __m256i bytes = _mm256_packs_epi16(low, high);
  const __m256i even = _mm256_and_si256(bytes, _mm256_set1_epi16(0x0f));
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), _mm256_set1_epi16(0xf0));
  return _mm256_or_si256(even, odd);
}

int32_t pack_vectors(const int32_t* values, int64_t count, uint8_t* packed) {
  constexpr int64_t kAtOnce = 64;
  __m256i outside = _mm256_setzero_si256();
  int64_t i = 0;
  for (; i + kAtOnce <= count; i += kAtOnce) {
    const __m256i first = narrow(values + i, &outside), last = narrow(values + i + 32, &outside);
    const __m256i pairs = _mm256_packus_epi16(first, last);
    const __m128i low = _mm256_castsi256_si128(pairs), high = _mm256_extracti128_si256(pairs, 1);
    __m128i* to = reinterpret_cast<__m128i*>(packed + i / 2);
    _mm_storeu_si128(to, _mm_unpacklo_epi16(low, high));
    _mm_storeu_si128(to + 1, _mm_unpackhi_epi16(low, high));
  }
  const bool fits = _mm256_testz_si256(outside, _mm256_set1_epi32(~15));
  return (fits ? 0 : 1) | pack(values + i, count - i, packed + i / 2);
}

}  // namespace
}  // namespace anynpu

#include "ops/int4_pack/kernel.inc"
