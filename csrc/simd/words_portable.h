// SPDX-License-Identifier: Apache-2.0
// Products of 16-bit integers for any CPU, included after vec_portable.h. A lane of Words is a pair of them.
#pragma once

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace anynpu {
namespace {

typedef int16_t Words __attribute__((vector_size(16)));
typedef int32_t Ints __attribute__((vector_size(16)));

inline Ints zero_ints() { return Ints{}; }
inline Words broadcast_pair(const int16_t* from) {
  return Words{from[0], from[1], from[0], from[1], from[0], from[1], from[0], from[1]};
}
inline Words load_words(const int16_t* from) {
  Words value;
  memcpy(&value, from, sizeof(value));
  return value;
}
inline Ints load_ints(const int32_t* from) {
  Ints value;
  memcpy(&value, from, sizeof(value));
  return value;
}
inline Ints add_ints(Ints a, Ints b) { return a + b; }
inline void store_ints(int32_t* to, Ints value) { memcpy(to, &value, sizeof(value)); }
// Pairs of int8.
inline Words load_pairs(const int8_t* from) {
  return Words{from[0], from[1], from[2], from[3], from[4], from[5], from[6], from[7]};
}
// Words of two rows, paired; order_columns() sorts the columns of what they give.
inline void pair_words(Words a, Words b, Words& low, Words& high) {
  low = Words{a[0], b[0], a[1], b[1], a[2], b[2], a[3], b[3]};
  high = Words{a[4], b[4], a[5], b[5], a[6], b[6], a[7], b[7]};
}
inline void order_columns(Ints&, Ints&) {}
// In each lane the sum of the products of its pair.
inline Ints pair_products(Words a, Words b) {
#if defined(__SSE2__)
  return (Ints)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
  Ints sums;
  for (int i = 0; i < kLanes; ++i) sums[i] = a[2 * i] * b[2 * i] + a[2 * i + 1] * b[2 * i + 1];
  return sums;
#endif
}
// first += pair_products(factor, a), second += pair_products(factor, b).
inline void add_pair_products(Ints& first, Ints& second, Words factor, Words a, Words b) {
  first += pair_products(factor, a);
  second += pair_products(factor, b);
}
inline void add_pair_products(Ints& first, Ints& second, const int16_t* factor, Words a, Words b) {
  add_pair_products(first, second, load_words(factor), a, b);
}
// The sums of the lanes of four vectors, two and two.
inline void store_int_sums(int32_t* low, int32_t* high, Ints a, Ints b, Ints c, Ints d) {
  low[0] = a[0] + a[1] + a[2] + a[3];
  low[1] = b[0] + b[1] + b[2] + b[3];
  high[0] = c[0] + c[1] + c[2] + c[3];
  high[1] = d[0] + d[1] + d[2] + d[3];
}
inline Vec float_of_ints(Ints value) { return __builtin_convertvector(value, Vec); }
// Rounded to nearest; within int16. NaN gives anything.
inline void store_words(int16_t* to, Vec value) {
  for (int i = 0; i < kLanes; ++i) {
    const float bounded = value[i] > -32768.0f ? value[i] < 32767.0f ? value[i] : 32767.0f : -32768.0f;
    to[i] = static_cast<int16_t>(__builtin_nearbyintf(bounded));
  }
}

// 32 bytes of two rows, alternately.
inline void pair_rows(const int8_t* a, const int8_t* b, int8_t* to) {
  for (int i = 0; i < 32; ++i) {
    to[2 * i] = a[i];
    to[2 * i + 1] = b[i];
  }
}

// 16 bytes from `column` on of 16 rows, as pairs: the first ones of all rows, then, `stride` bytes on, the second ones.
inline void pair_columns(const int8_t* const (&rows)[16], int64_t column, int8_t* to, int64_t stride) {
  for (int pair = 0; pair < 8; ++pair) {
    for (int row = 0; row < 16; ++row) memcpy(to + pair * stride + 2 * row, rows[row] + column + 2 * pair, 2);
  }
}

}  // namespace
}  // namespace anynpu
