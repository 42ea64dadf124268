// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "core/cpu.h"

// The dtypes of cast, with the C++ types that hold them in the kernels.
#define ANYNPU_CAST_DTYPES(X) \
  X(FLOAT32, float)           \
  X(FLOAT16, Half)            \
  X(BFLOAT16, BFloat16)       \
  X(FLOAT64, double)          \
  X(INT8, int8_t)             \
  X(INT16, int16_t)           \
  X(INT32, int32_t)           \
  X(INT64, int64_t)           \
  X(UINT8, uint8_t)           \
  X(UINT16, uint16_t)         \
  X(UINT32, uint32_t)         \
  X(UINT64, uint64_t)         \
  X(BOOL, Bool)

namespace anynpu {

// Converts `count` contiguous values.
using CastFunction = void (*)(const void* from, int64_t count, void* to);

#define ANYNPU_COUNT_ONE(code, type) +1
constexpr int kCastDtypes = ANYNPU_CAST_DTYPES(ANYNPU_COUNT_ONE);
#undef ANYNPU_COUNT_ONE

struct CastKernel {
  Isa isa;
  const CastFunction* from[kCastDtypes];  // from[i][j]: dtype i to dtype j, in the order of ANYNPU_CAST_DTYPES
};

// The conversion for the tier in force; nullptr for a dtype that cast does not have.
CastFunction cast_function(int32_t from, int32_t to);

}  // namespace anynpu
