// SPDX-License-Identifier: Apache-2.0
// Products of int8 rows with int4 weights: the driver of weight_quant_matmul, for which the rows are one digit.
#pragma once

#include "ops/quant_matmul/int8_problem.h"
#include "ops/weight_quant_matmul/weight_quant_matmul.h"

namespace anynpu {

struct Int4Weight {
  WeightSource source;
  int64_t group;   // k that share a row of `scale`, or 0: the scale of the problem is by column
  Channels scale;  // of groups
};

// y = (sum over the groups of the sums of x * w * scale + offset) * row_scale + float_bias, in float32; without groups as
// int8 weights. Sums of groups are exact, those of all k up to 2^14 k.
int32_t run_int4_gemm(const char* op, const Int8Problem& problem, const Int4Weight& weight);

}  // namespace anynpu
