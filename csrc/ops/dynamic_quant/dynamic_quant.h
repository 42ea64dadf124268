// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "core/cpu.h"

namespace anynpu {

struct DynamicQuantKernel {
  Isa isa;
  // values[i] *= factors[i].
  void (*multiply)(float* values, const float* factors, int64_t count);
  // largest[i] = max(largest[i], |values[i]|), NaN aside.
  void (*grow)(const float* values, int64_t count, float* largest);
  // max |values[i]|, NaN aside; 0 for none.
  float (*largest)(const float* values, int64_t count);
  // codes[i] = rint(values[i] / scale[i]), NaN and a zero scale give 0. One scale, or with `by_column` one for each value.
  void (*quantize)(const float* values, const float* scale, bool by_column, int64_t count, int8_t* codes);
};

// The kernels of the tier in force.
const DynamicQuantKernel& dynamic_quant_kernel();

}  // namespace anynpu
