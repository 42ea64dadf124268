// SPDX-License-Identifier: Apache-2.0
// Conversions of single values for the kernel units. Everything here has internal linkage: units share no code.
#pragma once

#include <cstdint>
#include <cstring>

namespace anynpu {
namespace {

inline float float_from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

inline uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

inline float float_from_half(uint16_t half) {
  const uint32_t magnitude = (half & 0x7fffu) << 13;
  const bool special = (half & 0x7c00u) == 0x7c00u;
  const float two_to_112 = float_from_bits(0x77800000u);
  const uint32_t bits = special ? magnitude | 0x7f800000u : bits_of(float_from_bits(magnitude) * two_to_112);
  return float_from_bits(bits | (half & 0x8000u) << 16);
}

inline uint16_t half_from_float(float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t sign = bits >> 16 & 0x8000u;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;
  } else if (magnitude >= 0x47800000u) {  // 65536 and more
    half = 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // subnormal: the addition rounds to multiples of 2^-24
    half = bits_of(float_from_bits(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  }
  return static_cast<uint16_t>(half | sign);
}

inline float float_from_bf16(uint16_t value) { return float_from_bits(static_cast<uint32_t>(value) << 16); }

inline uint16_t bf16_from_float(float value) {
  const uint32_t bits = bits_of(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

// Rounds half to even and saturates; NaN gives 0.
inline int8_t int8_from_float(float value) {
  if (!(value == value)) return 0;
  const float clamped = value < -128.0f ? -128.0f : value > 127.0f ? 127.0f : value;
  return static_cast<int8_t>(__builtin_nearbyintf(clamped));
}

}  // namespace
}  // namespace anynpu
