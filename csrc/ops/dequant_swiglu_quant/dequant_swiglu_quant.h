// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "core/cpu.h"

namespace anynpu {

constexpr int64_t kSwigluPadding = 64;  // activate takes some whole vectors of every tier at once

// gate * sigmoid(gate) * linear, or with `clamped` both limited, then gate * sigmoid(alpha * gate) * (linear + bias).
struct SwigluForm {
  bool clamped;
  float limit;
  float alpha;
  float bias;
};

struct DequantSwigluQuantKernel {
  Isa isa;
  // to[i] = (x[i] + int_bias[i]) * scale[i] * row_scale + float_bias[i], the integer sum exact. Biases may be null.
  void (*dequantize)(const int32_t* x, const int32_t* int_bias, const float* scale, float row_scale,
                     const float* float_bias, int64_t count, float* to);
  // `count` is a multiple of kSwigluPadding.
  void (*activate)(const float* gate, const float* linear, const SwigluForm& form, int64_t count, float* to);
  // codes[i] = saturate(rint(values[i] / scale[i] + offset[i])), NaN gives 0.
  void (*quantize)(const float* values, const float* scale, const float* offset, int64_t count, int8_t* codes);
};

}  // namespace anynpu
