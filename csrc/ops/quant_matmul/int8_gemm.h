// SPDX-License-Identifier: Apache-2.0
// The driver of the int8 matrix products: packs x, then each task owns a block of columns and a part of the rows, and asks
// for the weights one span of k after the other.
#pragma once

#include "core/tensor.h"
#include "gemm/gemm.h"

namespace anynpu {

// Integer sums are exact modulo 2^32 and |sum| <= 128 * 128 * K, which is below 2^31 up to here.
constexpr int64_t kMostInt8K = 131071;

class PanelSource {
 public:
  virtual ~PanelSource() = default;
  // Writes the canonical panels of a part: whole spans of k, at most 128 columns, or a multiple of 32 k and at most wide()
  // columns. False when the weight is damaged.
  virtual bool fill(const WeightPart& part, uint8_t* panels) const = 0;
  // Columns of a part where few rows of x leave it to the memory, a multiple of 128.
  virtual int64_t wide() const { return 128; }
  // The weight as it lies in memory, or null.
  virtual const WeightSource* plain() const { return nullptr; }
};

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

// ANYNPU_BAD_VALUE without a sentence when the weight is damaged; y may then be partly written.
int32_t run_int8_gemm(const char* op, const Int8Problem& problem, const PanelSource& weight);

// Finishes columns [column, column + columns) of row `row` of y. The sums are those of x * w plus `compensation`.
void store_int8_row(const Int8Problem& problem, int64_t row, int32_t compensation, const int32_t* sums, int64_t column,
                    int64_t columns);

}  // namespace anynpu
