// SPDX-License-Identifier: Apache-2.0
// Without VNNI: bytes up to 15 times int8, two products to a word.
#include "simd/products_avx2.h"

#include "ops/grouped_matmul_combine/vectors_avx2.inc"

namespace anynpu {
namespace {

// Each word takes two of four k. With bytes up to 15 it stays within int16 if the values of one sign do not exceed its
// fifteenth: most x of two blocks do not, as they would if all were 127.
bool small_sums(const int8_t* x, int64_t k) {
  const Vec ones = broadcast_bytes(1), zero = _mm256_setzero_si256();
  __m128i most = _mm_setzero_si128();
  for (; k > 0; k -= 64, x += 64) {
    const Vec first = load(x), last = load(x + 32);
    const Vec positive = _mm256_add_epi16(_mm256_maddubs_epi16(ones, _mm256_max_epi8(first, zero)),
                                          _mm256_maddubs_epi16(ones, _mm256_max_epi8(last, zero)));
    const Vec negative = _mm256_add_epi16(_mm256_maddubs_epi16(ones, _mm256_min_epi8(first, zero)),
                                          _mm256_maddubs_epi16(ones, _mm256_min_epi8(last, zero)));
    const Vec pairs =
        _mm256_add_epi16(_mm256_unpacklo_epi64(positive, negative), _mm256_unpackhi_epi64(positive, negative));
    const __m128i halves = _mm_add_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
    most = _mm_max_epi16(most, _mm_abs_epi16(_mm_add_epi16(halves, _mm_shuffle_epi32(halves, 0xb1))));
  }
  return _mm_movemask_epi8(_mm_cmpgt_epi16(most, _mm_set1_epi16(INT16_MAX / 15))) == 0;
}

}  // namespace
}  // namespace anynpu

#include "ops/grouped_matmul_combine/int4_avx2.inc"

namespace anynpu {

extern const CombineKernel combine_avx2;
const CombineKernel combine_avx2 = int4_kernel(Isa::avx2);

}  // namespace anynpu
