// SPDX-License-Identifier: Apache-2.0
// Vectors of floats in GCC's and Clang's vector extensions, for any CPU.
#pragma once

#include "simd/scalar.h"

namespace anynpu {
namespace {

typedef float Vec __attribute__((vector_size(16)));
constexpr int kLanes = 4;

inline Vec load(const float* from) {
  Vec value;
  memcpy(&value, from, sizeof(value));
  return value;
}
inline void store(float* to, Vec value) { memcpy(to, &value, sizeof(value)); }
inline Vec broadcast(float value) { return Vec{value, value, value, value}; }
inline Vec multiply_add(Vec a, Vec b, Vec c) { return a * b + c; }
inline Vec add(Vec a, Vec b) { return a + b; }
inline Vec subtract(Vec a, Vec b) { return a - b; }
inline Vec multiply(Vec a, Vec b) { return a * b; }
inline Vec divide(Vec a, Vec b) { return a / b; }

// b where either is NaN.
inline Vec maximum(Vec a, Vec b) { return a > b ? a : b; }
inline Vec minimum(Vec a, Vec b) { return a < b ? a : b; }
inline Vec absolute(Vec value) { return value < 0 ? -value : value; }
inline float largest(Vec value) {
  const float low = value[0] > value[1] ? value[0] : value[1];
  const float high = value[2] > value[3] ? value[2] : value[3];
  return low > high ? low : high;
}
// value * 2^n for n = exponent - 1.5 * 2^23, as a rounding addition of that constant leaves it.
inline Vec shift_exponent(Vec value, Vec exponent) {
  typedef uint32_t Bits __attribute__((vector_size(16)));
  Bits bits, shift;
  memcpy(&bits, &value, sizeof(bits));
  memcpy(&shift, &exponent, sizeof(shift));
  bits += shift << 23;
  memcpy(&value, &bits, sizeof(bits));
  return value;
}
// The sums of the lanes of four vectors.
inline void store_sums(float* to, const Vec (&parts)[4]) {
  for (int i = 0; i < 4; ++i) to[i] = (parts[i][0] + parts[i][1]) + (parts[i][2] + parts[i][3]);
}

inline Vec load_int8(const int8_t* from) {
  return Vec{static_cast<float>(from[0]), static_cast<float>(from[1]), static_cast<float>(from[2]),
             static_cast<float>(from[3])};
}
inline Vec load_int32(const int32_t* from) {
  typedef int32_t Ints __attribute__((vector_size(16)));
  Ints values;
  memcpy(&values, from, sizeof(values));
  return __builtin_convertvector(values, Vec);
}
// a + b, exact before the one rounding to float also where it leaves the range of int32.
inline Vec load_int32_sum(const int32_t* from_a, const int32_t* from_b) {
  Vec sum = {};
  for (int i = 0; i < kLanes; ++i) sum[i] = static_cast<float>(int64_t{from_a[i]} + from_b[i]);
  return sum;
}

// The bits of `mask` from bit `first` on of each of kLanes dwords, as a float.
inline Vec float_of_bits(const uint8_t* from, int first, int mask) {
  typedef int32_t Ints __attribute__((vector_size(16)));
  Ints dwords;
  memcpy(&dwords, from, sizeof(dwords));
  return __builtin_convertvector((dwords >> first) & mask, Vec);
}

inline Vec load_half(const uint16_t* from) {
  return Vec{float_from_half(from[0]), float_from_half(from[1]), float_from_half(from[2]), float_from_half(from[3])};
}
inline Vec load_bf16(const uint16_t* from) {
  return Vec{float_from_bf16(from[0]), float_from_bf16(from[1]), float_from_bf16(from[2]), float_from_bf16(from[3])};
}
inline void store_half(uint16_t* to, Vec value) {
  for (int i = 0; i < kLanes; ++i) to[i] = half_from_float(value[i]);
}
inline void store_bf16(uint16_t* to, Vec value) {
  for (int i = 0; i < kLanes; ++i) to[i] = bf16_from_float(value[i]);
}
inline void store_int8(int8_t* to, Vec value) {
  for (int i = 0; i < kLanes; ++i) to[i] = int8_from_float(value[i]);
}
// Of magnitudes up to 127.5; NaN gives 0.
inline void store_codes(int8_t* to, const Vec (&values)[4]) {
  for (int i = 0; i < 4; ++i) store_int8(to + i * kLanes, values[i]);
}

}  // namespace
}  // namespace anynpu
