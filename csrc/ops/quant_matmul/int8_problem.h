// SPDX-License-Identifier: Apache-2.0
// An int8 matrix product without its weight, and how its sums become y.
#pragma once

#include "core/tensor.h"

namespace anynpu {

// Integer sums are exact modulo 2^32 and |sum| <= 128 * 128 * K, which is below 2^31 up to here.
constexpr int64_t kMostInt8K = 131071;

struct Int8Problem {
  int64_t rows;
  int64_t k;
  int64_t n;
  const int8_t* x;
  const anynpu_tensor* x_view;  // where row r of x lies, counted through all axes but the last
  void* y;                      // [rows][n]
  int32_t y_dtype;
  // By column, padded to whole panels, or null.
  const float* scale;
  const int32_t* bias;
  const float* float_bias;
  const float* offset;
  const float* row_scale;  // of row r: row_scale[r % row_scale_count * row_scale_stride], or null
  int64_t row_scale_count;
  int64_t row_scale_stride;
};

// Sums [rows][stride] of columns [column, column + columns) of y, from row `row` on: those of x * w plus the row's compensation.
struct Int8Sums {
  const int32_t* sums;
  int64_t stride;
  const int32_t* compensation;  // [rows], or null: none
  int64_t row;
  int64_t rows;
  int64_t column;
  int64_t columns;
};

void store_int8_sums(const Int8Problem& problem, const Int8Sums& sums);

}  // namespace anynpu
