// SPDX-License-Identifier: Apache-2.0
// Included after the vec header of a kernel unit.
#pragma once

#include "simd/exponential.h"

namespace anynpu {
namespace {

// 1 / (1 + exp(-value)); below -87 exactly 0, which is why what the exponential leaves there is subtracted.
inline Vec sigmoid(Vec value) {
  const auto of_exponent = [](Vec exponent) {
    const Vec one = broadcast(1.0f);
    return divide(one, add(one, exponential(exponent)));
  };
  const Vec limited = maximum(broadcast(-87.0f), value);
  return subtract(of_exponent(subtract(broadcast(0.0f), limited)), of_exponent(broadcast(87.0f)));
}

}  // namespace
}  // namespace anynpu
