// SPDX-License-Identifier: Apache-2.0
// The int8 matrix product of few rows, which reads the weight once, as it lies.
#pragma once

#include "gemm/gemm.h"
#include "ops/quant_matmul/int8_problem.h"

namespace anynpu {

// How many rows it is best for on this tier; 0 where the layout does not allow it.
int64_t most_direct_rows(const WeightSource& weight);
int32_t run_int8_direct(const char* op, const Int8Problem& problem, const WeightSource& weight);

}  // namespace anynpu
