// SPDX-License-Identifier: Apache-2.0
// What grouped_matmul_combine needs from an instruction set tier. No STL: the kernel units include this.
#pragma once

#include <cstdint>

#include "core/cpu.h"
#include "ops/quant_matmul/int8_kernel.h"

namespace anynpu {

// values += (sums - of_row - of_column) * scale, modulo 2^32 within the brackets; the sums start again from zero.
struct GroupSums {
  int32_t* sums;             // [rows][stride]
  float* values;             // [rows][stride]
  const int32_t* of_row;     // [rows]
  const int32_t* of_column;  // [columns]
  const float* scale;        // [columns]
  int64_t rows;
  int64_t columns;
  int64_t stride;
};

struct CombineKernel {
  Isa isa;
  // The product with panels of int4, bytes 0 to 15, and the height of its tiles. Null: that of the int8 product does.
  int64_t tile_rows;
  void (*multiply_int4)(const Int8Product& product);
  void (*scale_group)(const GroupSums& group);
  // y += values * first * second.
  void (*add_row)(const float* values, float first, float second, int64_t count, float* y);
  // y += shared * weight; bfloat16.
  void (*add_shared)(const uint16_t* shared, float weight, int64_t count, float* y);
};

}  // namespace anynpu
