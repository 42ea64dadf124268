// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "core/cpu.h"

namespace anynpu {

struct SwigluKernel {
  Isa isa;
  // y[i] = gate[i] * sigmoid(gate[i]) * linear[i], all of one float dtype; the bits of y[i] do not depend on its place.
  void (*activate)(int32_t dtype, const void* gate, const void* linear, int64_t count, void* y);
};

}  // namespace anynpu
