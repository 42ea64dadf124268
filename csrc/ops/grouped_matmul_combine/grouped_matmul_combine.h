// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/tensor.h"
#include "gemm/weight_view.h"

namespace anynpu {

// A checked call. The data (group_list, row_index) are checked by check_rows.
struct CombineProblem {
  const anynpu_grouped_matmul_combine_args* args;
  int64_t m, k, n;
  int64_t experts;
  int64_t batch;         // rows of y
  int64_t scale_groups;  // rows of scale of one expert
  WeightView weight;

  bool int4() const { return weight.source.bits == 4; }
  // The int32 sums of each row are all that is wanted.
  bool sums_only() const { return args->y.dtype == ANYNPU_INT32; }
  int64_t group_size() const { return k / scale_groups; }
  WeightSource expert_weight(int64_t expert) const {
    WeightSource source = weight.source;
    source.data += expert * weight.batch_bytes[0];
    return source;
  }
};

int32_t check_grouped_matmul_combine(const anynpu_grouped_matmul_combine_args& args, CombineProblem* problem);

// Reads group_list and row_index: the first row behind each group, and the row of y that each row of x is added to.
int32_t read_groups(const CombineProblem& problem, int64_t* group_ends);
int32_t read_row_index(const CombineProblem& problem, int64_t rows, int64_t* row_index);

}  // namespace anynpu
