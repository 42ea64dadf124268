// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "core/cpu.h"

namespace anynpu {

// scale * (row + bias); null stands for zeros.
struct RoutedTerm {
  const uint8_t* row;
  const uint8_t* bias;
  float scale;
};

struct MoeFinalizeRoutingKernel {
  Isa isa;
  // y[i] = the sum of the terms in their order, in float32, rounded once; rows, biases and y have one float dtype. The bits
  // of y[i] do not depend on its place.
  void (*add)(int32_t dtype, const RoutedTerm* terms, int64_t count, int64_t columns, void* y);
};

}  // namespace anynpu
