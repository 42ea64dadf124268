// SPDX-License-Identifier: Apache-2.0
// The int8 matrix product of few rows, which reads the weight once, as it lies.
#pragma once

#include "ops/quant_matmul/int8_gemm.h"

namespace anynpu {

// Whether the tier, the rows and the layout allow it.
bool prefers_direct(const Int8Problem& problem, const PanelSource& weight);
int32_t run_int8_direct(const char* op, const Int8Problem& problem, const WeightSource& weight);

}  // namespace anynpu
