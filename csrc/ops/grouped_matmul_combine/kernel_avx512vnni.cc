// SPDX-License-Identifier: Apache-2.0
#include <cstdint>

#include "simd/dot_avx512.h"

#define ANYNPU_INLINE inline __attribute__((always_inline))

namespace anynpu {
namespace {

typedef __m512i Vec;
constexpr int kTileRows = 6;
constexpr int kTileVectors = 4;

inline Vec load(const void* from) { return _mm512_loadu_si512(from); }
inline void store(void* to, Vec value) { _mm512_storeu_si512(to, value); }
inline Vec broadcast(int32_t value) { return _mm512_set1_epi32(value); }
inline Vec broadcast_bytes(char value) { return _mm512_set1_epi8(value); }
inline Vec exclusive_or(Vec a, Vec b) { return _mm512_xor_si512(a, b); }
inline Vec subtract(Vec a, Vec b) { return _mm512_sub_epi32(a, b); }
inline Vec low_nibbles(Vec bytes) { return _mm512_and_si512(bytes, _mm512_set1_epi8(15)); }
inline Vec high_nibbles(Vec bytes) { return low_nibbles(_mm512_srli_epi16(bytes, 4)); }

template <int kHalf>
inline Vec interleave_bytes(Vec a, Vec b) {
  return kHalf == 0 ? _mm512_unpacklo_epi8(a, b) : _mm512_unpackhi_epi8(a, b);
}
template <int kHalf>
inline Vec interleave_words(Vec a, Vec b) {
  return kHalf == 0 ? _mm512_unpacklo_epi16(a, b) : _mm512_unpackhi_epi16(a, b);
}

inline void add_bytes(Vec& sum, Vec bytes) { sum = _mm512_add_epi8(sum, bytes); }
inline void add_products(Vec& sum, Vec bytes, Vec x) { dot_bytes(sum, bytes, x); }
inline Vec first_products(Vec bytes, Vec x) {
  Vec sum = _mm512_setzero_si512();
  dot_bytes(sum, bytes, x);
  return sum;
}

inline void flush_products(Vec sums, int32_t* to) { store(to, _mm512_add_epi32(load(to), sums)); }
inline void flush_bytes(Vec bytes, int32_t* to) { flush_products(first_products(bytes, broadcast_bytes(1)), to); }

constexpr int kLongBlocks = 1;
constexpr int kStreamK = 4;
inline Vec broadcast_at(const int32_t* from) { return broadcast(*from); }
inline Vec subtract_partial(Vec a, Vec b) { return subtract(a, b); }
inline void flush_stream(Vec sums, int32_t* to) { flush_products(sums, to); }
inline void order_stream(int32_t*) {}

inline void store_columns(Vec even, Vec odd, int32_t* to) {
  const Vec low = _mm512_unpacklo_epi32(even, odd), high = _mm512_unpackhi_epi32(even, odd);
  const Vec first = _mm512_permutex2var_epi64(low, _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), high);
  const Vec last = _mm512_permutex2var_epi64(low, _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15), high);
  const __m256i quarters[] = {_mm512_castsi512_si256(first), _mm512_extracti64x4_epi64(first, 1),
                              _mm512_castsi512_si256(last), _mm512_extracti64x4_epi64(last, 1)};
  for (int i = 0; i < 4; ++i) _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 32 * i), quarters[i]);
}

}  // namespace
}  // namespace anynpu

#include "ops/grouped_matmul_combine/int4.inc"

namespace anynpu {

extern const CombineKernel combine_avx512vnni;
const CombineKernel combine_avx512vnni = {Isa::avx512vnni, kColumns,   kTileRows,   kBlockSteps, multiply_int4,
                                          nullptr,         scale_int4, scale_group, add_row,     add_shared};

}  // namespace anynpu
