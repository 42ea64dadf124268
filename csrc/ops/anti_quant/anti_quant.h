// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "core/cpu.h"

namespace anynpu {

struct AntiQuantKernel {
  Isa isa;
  // y[i] = (codes[i] + offset[i]) * scale[i], in float32, rounded once to float16 or bfloat16.
  void (*dequantise)(const int8_t* codes, const float* scale, const float* offset, int64_t count, int32_t dtype,
                     void* y);
};

}  // namespace anynpu
