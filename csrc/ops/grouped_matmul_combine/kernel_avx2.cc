// SPDX-License-Identifier: Apache-2.0
// Without VNNI: bytes up to 15 times int8, two products to a word.
#include <immintrin.h>

#include <cstdint>

#define ANYNPU_INLINE inline __attribute__((always_inline))

namespace anynpu {
namespace {

typedef __m256i Vec;
constexpr int kTileRows = 4;
constexpr int kTileVectors = 2;

inline Vec load(const void* from) { return _mm256_loadu_si256(static_cast<const Vec*>(from)); }
inline void store(void* to, Vec value) { _mm256_storeu_si256(static_cast<Vec*>(to), value); }
inline Vec broadcast(int32_t value) { return _mm256_set1_epi32(value); }
inline Vec broadcast_bytes(char value) { return _mm256_set1_epi8(value); }
inline Vec exclusive_or(Vec a, Vec b) { return _mm256_xor_si256(a, b); }
inline Vec subtract(Vec a, Vec b) { return _mm256_sub_epi32(a, b); }
inline Vec low_nibbles(Vec bytes) { return _mm256_and_si256(bytes, _mm256_set1_epi8(15)); }
inline Vec high_nibbles(Vec bytes) { return low_nibbles(_mm256_srli_epi16(bytes, 4)); }

template <int kHalf>
inline Vec interleave_bytes(Vec a, Vec b) {
  return kHalf == 0 ? _mm256_unpacklo_epi8(a, b) : _mm256_unpackhi_epi8(a, b);
}
template <int kHalf>
inline Vec interleave_words(Vec a, Vec b) {
  return kHalf == 0 ? _mm256_unpacklo_epi16(a, b) : _mm256_unpackhi_epi16(a, b);
}
template <int kHalf>
inline Vec interleave_lanes(Vec a, Vec b) {
  return kHalf == 0 ? _mm256_unpacklo_epi32(a, b) : _mm256_unpackhi_epi32(a, b);
}

// GCC adds up the intrinsics in another order, with spills; operands tied here stay where they are.
inline void add_bytes(Vec& sum, Vec bytes) { asm("vpaddb %1, %0, %0" : "+x"(sum) : "x"(bytes)); }
inline void add_products(Vec& sum, Vec bytes, Vec x) {
  Vec products;
  asm("vpmaddubsw %3, %2, %1\n\tvpaddw %1, %0, %0" : "+x"(sum), "=&x"(products) : "x"(bytes), "x"(x));
}
inline Vec first_products(Vec bytes, Vec x) { return _mm256_maddubs_epi16(bytes, x); }

inline void flush_products(Vec words, int32_t* to) {
  const Vec sums = _mm256_madd_epi16(words, _mm256_set1_epi16(1));
  store(to, _mm256_add_epi32(load(to), sums));
}
inline void flush_bytes(Vec bytes, int32_t* to) { flush_products(_mm256_maddubs_epi16(bytes, broadcast_bytes(1)), to); }

constexpr int kLongBlocks = 2;
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

// GCC would do it for all steps before the loop over panels, and spill the vectors.
inline Vec broadcast_at(const int32_t* from) {
  Vec value;
  asm volatile("vpbroadcastd %1, %0" : "=x"(value) : "m"(*from));
  return value;
}
inline Vec subtract_partial(Vec a, Vec b) { return _mm256_sub_epi16(a, b); }
// Words of neighbouring columns.
inline void flush_stream(Vec words, int32_t* to) {
  store(to, _mm256_add_epi32(load(to), _mm256_madd_epi16(words, broadcast(1))));
  store(to + 8, _mm256_add_epi32(load(to + 8), _mm256_srai_epi32(words, 16)));
}
inline void order_stream(int32_t* sums) {
  for (int half = 0; half < 2; ++half, sums += 32) {
    const Vec low = load(sums), next_low = load(sums + 8), high = load(sums + 16), next_high = load(sums + 24);
    store(sums, interleave_lanes<0>(low, next_low));
    store(sums + 8, interleave_lanes<0>(high, next_high));
    store(sums + 16, interleave_lanes<1>(low, next_low));
    store(sums + 24, interleave_lanes<1>(high, next_high));
  }
}

inline void store_columns(Vec even, Vec odd, int32_t* to) {
  const Vec low = interleave_lanes<0>(even, odd), high = interleave_lanes<1>(even, odd);
  store(to, _mm256_permute2x128_si256(low, high, 0x20));
  store(to + 32, _mm256_permute2x128_si256(low, high, 0x31));
}

}  // namespace
}  // namespace anynpu

#include "ops/grouped_matmul_combine/int4_avx2.inc"

namespace anynpu {

extern const CombineKernel combine_avx2;
const CombineKernel combine_avx2 = {Isa::avx2,   {8, 1024, 1 << 15},
                                    kColumns,    kTileRows,
                                    kBlockSteps, multiply_int4,
                                    small_sums,  scale_int4,
                                    nullptr,     0,
                                    0,           nullptr,
                                    scale_group, add_row,
                                    add_shared};

}  // namespace anynpu
