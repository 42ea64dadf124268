// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "core/cpu.h"

namespace anynpu {

constexpr int64_t kGatingBlock = 16;  // buffers of rows hold whole blocks; what lies behind the row is overwritten

struct GatingKernel {
  Isa isa;
  // The softmax of a row, in place; all NaN where the row has a NaN, or its largest value is infinite.
  void (*softmax)(float* values, int64_t count);
  // 1 / (1 + exp(-value)) of a row, in place.
  void (*sigmoid)(float* values, int64_t count);
  // Rounds to float16.
  void (*round_to_half)(float* values, int64_t count);
  // index[j] = where the j-th largest value is: NaN before all others, among equals the one with the lower index. `keys`
  // takes a number for each value, `tops` one for each block.
  void (*choose)(const float* values, int64_t count, int64_t k, int32_t* keys, int32_t* tops, int32_t* index);
};

// The kernels of the tier in force.
const GatingKernel& gating_kernel();

}  // namespace anynpu
