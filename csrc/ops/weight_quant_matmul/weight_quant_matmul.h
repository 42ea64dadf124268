// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/tensor.h"
#include "gemm/gemm.h"
#include "gemm/weight_view.h"

namespace anynpu {

// One value per column, or per group and column; strides in elements, 0 along a broadcast axis.
struct Channels {
  const void* data;
  int32_t dtype;
  int64_t group_stride;
  int64_t column_stride;
};

// Takes the sums of x * q * scale of int8 rows.
class RowSums {
 public:
  virtual ~RowSums() = default;
  // Those of columns [column, column + columns) of row `row` of x, counted through all axes; `sums` may be changed.
  virtual void store(int64_t row, int64_t column, int64_t columns, float* sums) const = 0;
};

// A checked call. With `sums` x is int8 and weights are int4, bias and quant_scale are absent, and y is not looked at.
struct WeightQuantProblem {
  const anynpu_weight_quant_matmul_args* args;
  int64_t m, k, n;
  int64_t rows;                                             // M times the batches that share one weight
  int64_t weight_count;                                     // batches with a weight of their own
  int64_t group;                                            // k of one group, at least 1
  WeightView weight;                                        // of a prepacked weight only bits is known before the run
  Channels scale, offset, bias, quant_scale, quant_offset;  // data may be null
  bool has_offset, has_bias, has_quant;
  const RowSums* sums;

  bool has_int8_rows() const { return sums != nullptr; }
  int32_t panel_bias() const { return weight.source.bits == 8 ? 128 : 8; }  // of the bytes of a panel (gemm/gemm.h)
};

int32_t check_weight_quant_matmul(const anynpu_weight_quant_matmul_args& args, WeightQuantProblem* problem);

// In `workspace` if it is large enough.
int32_t run_weight_quant_matmul(const char* op, const WeightQuantProblem& problem, void* workspace,
                                size_t workspace_bytes);

}  // namespace anynpu
