// SPDX-License-Identifier: Apache-2.0
// The values of a block beside the rows of the weight (n, k) that it belongs to.
#pragma once

#include <cstdint>

#include "codec/decode.h"

namespace anynpu::codec {

inline bool rows_hold(const int8_t* weight, const Geometry& geometry, int64_t block, const uint8_t* values) {
  const BlockShape shape = block_shape(geometry, block);
  for (int64_t n = 0; n < shape.n_count; ++n) {
    const uint8_t* panel = values + n / kPanelColumns * shape.panel_values();
    for (int64_t k = 0; k < shape.k_count; ++k) {
      const uint8_t value = panel[(k / 4 * kPanelColumns + n % kPanelColumns) * 4 + k % 4];
      if (weight[(shape.n + n) * geometry.k + shape.k + k] != static_cast<int8_t>(value ^ 0x80)) return false;
    }
  }
  return true;
}

}  // namespace anynpu::codec
