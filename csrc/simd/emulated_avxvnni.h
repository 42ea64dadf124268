// SPDX-License-Identifier: Apache-2.0
// The intrinsics of AVX-VNNI in AVX2, as emulated_avx512.h has those of AVX-512. tests/native/emulated_avxvnni.cc compares
// both on a CPU that has AVX-VNNI.
#pragma once

#include <immintrin.h>

namespace anynpu {
namespace {

inline __attribute__((always_inline, unused)) __m256i _mm256_dpwssd_avx_epi32(__m256i sums, __m256i a, __m256i b) {
  return _mm256_add_epi32(sums, _mm256_madd_epi16(a, b));
}
inline __attribute__((always_inline, unused)) __m256i _mm256_dpbusd_avx_epi32(__m256i sums, __m256i weights,
                                                                              __m256i x) {
  const __m256i even = _mm256_and_si256(weights, _mm256_set1_epi16(255)), odd = _mm256_srli_epi16(weights, 8);
  sums = _mm256_dpwssd_avx_epi32(sums, even, _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8));
  return _mm256_dpwssd_avx_epi32(sums, odd, _mm256_srai_epi16(x, 8));
}

}  // namespace
}  // namespace anynpu
