// SPDX-License-Identifier: Apache-2.0
// The 64-bit word in which quantised matmuls take a scale and an offset (docs/ops/trans_quant_param.md). Not for kernel units.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace anynpu {

struct QuantParam {
  float scale;
  float offset;
};

inline QuantParam decode_quant_param(int64_t word) {
  const uint32_t bits = static_cast<uint32_t>(word);
  const int field = static_cast<int>(word >> 37 & 511);
  QuantParam param;
  std::memcpy(&param.scale, &bits, sizeof(bits));
  param.offset = static_cast<float>(field < 256 ? field : field - 512);
  return param;
}

// The scale keeps 19 bits: the rest is cut, or rounded half to even. NaN stays NaN. An offset that is NaN becomes 0.
inline int64_t encode_quant_param(float scale, float offset, bool round) {
  uint32_t bits;
  std::memcpy(&bits, &scale, sizeof(bits));
  if (std::isnan(scale)) {
    bits |= 0x00400000u;
  } else if (round) {
    bits += 0x0fffu + (bits >> 13 & 1u);
  }
  const float field = std::isnan(offset) ? 0.0f : std::nearbyint(std::min(std::max(offset, -256.0f), 255.0f));
  const uint64_t offset_bits = static_cast<uint64_t>(static_cast<int64_t>(field) & 511);
  return static_cast<int64_t>(uint64_t{1} << 46 | offset_bits << 37 | (bits & 0xffffe000u));
}

}  // namespace anynpu
