// SPDX-License-Identifier: Apache-2.0
// Vectors of floats in NEON.
#pragma once

#include <arm_neon.h>

#include "simd/scalar.h"

namespace anynpu {
namespace {

typedef float32x4_t Vec;
constexpr int kLanes = 4;

inline Vec load(const float* from) { return vld1q_f32(from); }
inline void store(float* to, Vec value) { vst1q_f32(to, value); }
inline Vec broadcast(float value) { return vdupq_n_f32(value); }
inline Vec multiply_add(Vec a, Vec b, Vec c) { return vfmaq_f32(c, a, b); }
inline Vec add(Vec a, Vec b) { return vaddq_f32(a, b); }
inline Vec subtract(Vec a, Vec b) { return vsubq_f32(a, b); }
inline Vec multiply(Vec a, Vec b) { return vmulq_f32(a, b); }
inline Vec divide(Vec a, Vec b) { return vdivq_f32(a, b); }

// b where either is NaN.
inline Vec maximum(Vec a, Vec b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
inline Vec minimum(Vec a, Vec b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
inline Vec absolute(Vec value) { return vabsq_f32(value); }
inline float largest(Vec value) { return vmaxvq_f32(value); }
// value * 2^n for n = exponent - 1.5 * 2^23, as a rounding addition of that constant leaves it.
inline Vec shift_exponent(Vec value, Vec exponent) {
  const int32x4_t shift = vshlq_n_s32(vreinterpretq_s32_f32(exponent), 23);
  return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(value), shift));
}
// The sums of the lanes of four vectors.
inline void store_sums(float* to, const Vec (&parts)[4]) {
  store(to, vpaddq_f32(vpaddq_f32(parts[0], parts[1]), vpaddq_f32(parts[2], parts[3])));
}

inline Vec load_int8(const int8_t* from) {
  int32_t bytes;
  memcpy(&bytes, from, sizeof(bytes));
  const int16x8_t words = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(bytes)));
  return vcvtq_f32_s32(vmovl_s16(vget_low_s16(words)));
}
inline Vec load_int32(const int32_t* from) { return vcvtq_f32_s32(vld1q_s32(from)); }
// a + b, exact before the one rounding to float also where it leaves the range of int32.
inline Vec load_int32_sum(const int32_t* from_a, const int32_t* from_b) {
  const int32x4_t a = vld1q_s32(from_a), b = vld1q_s32(from_b);
  const float64x2_t low = vcvtq_f64_s64(vaddl_s32(vget_low_s32(a), vget_low_s32(b)));
  return vcvt_high_f32_f64(vcvt_f32_f64(low), vcvtq_f64_s64(vaddl_high_s32(a, b)));
}

// The bits of `mask` from bit `first` on of each of kLanes dwords, as a float.
inline Vec float_of_bits(const uint8_t* from, int first, uint32_t mask) {
  const uint32x4_t dwords = vreinterpretq_u32_u8(vld1q_u8(from));
  return vcvtq_f32_u32(vandq_u32(vshlq_u32(dwords, vdupq_n_s32(-first)), vdupq_n_u32(mask)));
}

inline Vec load_half(const uint16_t* from) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from))); }
inline Vec load_bf16(const uint16_t* from) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(from), 16)); }
inline void store_half(uint16_t* to, Vec value) { vst1_u16(to, vreinterpret_u16_f16(vcvt_f16_f32(value))); }
inline void store_bf16(uint16_t* to, Vec value) {
  const uint32x4_t bits = vreinterpretq_u32_f32(value);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint16x4_t rounded = vaddhn_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
  const uint16x4_t quiet = vorr_u16(vshrn_n_u32(bits, 16), vdup_n_u16(0x40));
  vst1_u16(to, vbsl_u16(vmovn_u32(vceqq_f32(value, value)), rounded, quiet));
}
// The conversion rounds half to even, saturates, and makes 0 of NaN.
inline void store_int8(int8_t* to, Vec value) {
  const int16x4_t words = vqmovn_s32(vcvtnq_s32_f32(value));
  const int32x2_t bytes = vreinterpret_s32_s8(vqmovn_s16(vcombine_s16(words, words)));
  vst1_lane_s32(reinterpret_cast<int32_t*>(to), bytes, 0);
}
// Of magnitudes up to 127.5; NaN gives 0.
inline void store_codes(int8_t* to, const Vec (&values)[4]) {
  const auto words = [](Vec a, Vec b) { return vqmovn_high_s32(vqmovn_s32(vcvtnq_s32_f32(a)), vcvtnq_s32_f32(b)); };
  vst1q_s8(to, vqmovn_high_s16(vqmovn_s16(words(values[0], values[1])), words(values[2], values[3])));
}

}  // namespace
}  // namespace anynpu
