// SPDX-License-Identifier: Apache-2.0
// Dot products of AVX-512. GCC 12 copies and spills the accumulators of the intrinsics; an operand tied here stays where
// it is. Emulation (simd/emulated_avx512.h) has the intrinsics only.
#pragma once

#include <immintrin.h>

namespace anynpu {
namespace {

// sum += weights (unsigned) * x (signed), four bytes a lane.
inline void dot_bytes(__m512i& sum, __m512i weights, __m512i x) {
#if defined(__AVX512VNNI__)
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(weights), "v"(x));
#else
  sum = _mm512_dpbusd_epi32(sum, weights, x);
#endif
}

// sum += a * b, two signed words a lane.
inline void dot_words(__m512i& sum, __m512i a, __m512i b) {
#if defined(__AVX512VNNI__)
  asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
#else
  sum = _mm512_dpwssd_epi32(sum, a, b);
#endif
}

}  // namespace
}  // namespace anynpu
