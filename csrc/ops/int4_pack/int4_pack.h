// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "core/cpu.h"

namespace anynpu {

struct Int4PackKernel {
  Isa isa;
  // Packs `count` values (even) into count / 2 bytes. Returns zero when all of them lie in [-8, 7].
  int32_t (*pack)(const int32_t* values, int64_t count, uint8_t* packed);
  // Unpacks `count` values (even).
  void (*unpack_int32)(const uint8_t* packed, int64_t count, int32_t* values);
  void (*unpack_int8)(const uint8_t* packed, int64_t count, int8_t* values);
};

}  // namespace anynpu
