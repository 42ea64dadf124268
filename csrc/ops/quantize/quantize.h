// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "core/cpu.h"

namespace anynpu {

constexpr int64_t kQuantizeBlock = 64;

// Quantises `count` values, each with its own scale and zero point. The three inputs can be read up to the next multiple
// of kQuantizeBlock.
using QuantizeFunction = void (*)(const float* x, const float* scales, const double* zero_points, int64_t count,
                                  void* y);

struct QuantizeKernel {
  Isa isa;
  QuantizeFunction divide_int8, divide_uint8, divide_int32;
  QuantizeFunction multiply_int8, multiply_int4;  // int4: two values a byte, `count` even
};

// The kernels of the tier in force.
const QuantizeKernel& quantize_kernel();

}  // namespace anynpu
