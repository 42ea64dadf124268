// SPDX-License-Identifier: Apache-2.0
// Products of 16-bit integers in NEON, included after vec_neon.h. A lane of Words is a pair of them.
#pragma once

namespace anynpu {
namespace {

typedef int16x8_t Words;
typedef int32x4_t Ints;

inline Ints zero_ints() { return vdupq_n_s32(0); }
inline Words broadcast_pair(const int16_t* from) {
  int32_t pair;
  memcpy(&pair, from, sizeof(pair));
  return vreinterpretq_s16_s32(vdupq_n_s32(pair));
}
inline Words load_words(const int16_t* from) { return vld1q_s16(from); }
inline Ints load_ints(const int32_t* from) { return vld1q_s32(from); }
inline Ints add_ints(Ints a, Ints b) { return vaddq_s32(a, b); }
inline void store_ints(int32_t* to, Ints value) { vst1q_s32(to, value); }
// Pairs of int8.
inline Words load_pairs(const int8_t* from) { return vmovl_s8(vld1_s8(from)); }
// Words of two rows, paired; order_columns() sorts the columns of what they give.
inline void pair_words(Words a, Words b, Words& low, Words& high) {
  low = vzip1q_s16(a, b);
  high = vzip2q_s16(a, b);
}
inline void order_columns(Ints&, Ints&) {}
// In each lane the sum of the products of its pair.
inline Ints pair_products(Words a, Words b) {
  return vpaddq_s32(vmull_s16(vget_low_s16(a), vget_low_s16(b)), vmull_high_s16(a, b));
}
// first += pair_products(factor, a), second += pair_products(factor, b).
inline void add_pair_products(Ints& first, Ints& second, Words factor, Words a, Words b) {
  first = vaddq_s32(first, pair_products(factor, a));
  second = vaddq_s32(second, pair_products(factor, b));
}
inline void add_pair_products(Ints& first, Ints& second, const int16_t* factor, Words a, Words b) {
  add_pair_products(first, second, load_words(factor), a, b);
}
// The sums of the lanes of four vectors, two and two.
inline void store_int_sums(int32_t* low, int32_t* high, Ints a, Ints b, Ints c, Ints d) {
  const Ints sums = vpaddq_s32(vpaddq_s32(a, b), vpaddq_s32(c, d));
  vst1_s32(low, vget_low_s32(sums));
  vst1_s32(high, vget_high_s32(sums));
}
inline Vec float_of_ints(Ints value) { return vcvtq_f32_s32(value); }
// Rounded to nearest; within int16. NaN gives anything.
inline void store_words(int16_t* to, Vec value) { vst1_s16(to, vqmovn_s32(vcvtnq_s32_f32(value))); }

// 32 bytes of two rows, alternately.
inline void pair_rows(const int8_t* a, const int8_t* b, int8_t* to) {
  for (int i = 0; i < 32; i += 16) {
    const int8x16x2_t rows = {{vld1q_s8(a + i), vld1q_s8(b + i)}};
    vst2q_s8(to + 2 * i, rows);
  }
}

// 16 bytes from `column` on of 16 rows, as pairs: the first ones of all rows, then, `stride` bytes on, the second ones.
inline void pair_columns(const int8_t* const (&rows)[16], int64_t column, int8_t* to, int64_t stride) {
  for (int half = 0; half < 16; half += 8, to += 16) {  // of the rows
    int16x8_t words[8], dwords[8];
    for (int i = 0; i < 8; ++i) words[i] = vreinterpretq_s16_s8(vld1q_s8(rows[half + i] + column));
    for (int i = 0; i < 4; ++i) {
      dwords[2 * i] = vzip1q_s16(words[2 * i], words[2 * i + 1]);
      dwords[2 * i + 1] = vzip2q_s16(words[2 * i], words[2 * i + 1]);
    }
    int64x2_t qwords[8];  // two or two of four rows: pairs 0, 1, ..., 7
    for (int i = 0; i < 2; ++i) {
      for (int part = 0; part < 2; ++part) {
        const int32x4_t a = vreinterpretq_s32_s16(dwords[4 * i + part]);
        const int32x4_t b = vreinterpretq_s32_s16(dwords[4 * i + 2 + part]);
        qwords[4 * i + 2 * part] = vreinterpretq_s64_s32(vzip1q_s32(a, b));
        qwords[4 * i + 2 * part + 1] = vreinterpretq_s64_s32(vzip2q_s32(a, b));
      }
    }
    for (int i = 0; i < 4; ++i) {
      const int64x2_t a = qwords[i], b = qwords[4 + i];
      vst1q_s8(to + 2 * i * stride, vreinterpretq_s8_s64(vzip1q_s64(a, b)));
      vst1q_s8(to + (2 * i + 1) * stride, vreinterpretq_s8_s64(vzip2q_s64(a, b)));
    }
  }
}

}  // namespace
}  // namespace anynpu
