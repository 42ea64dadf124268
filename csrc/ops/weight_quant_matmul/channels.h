// SPDX-License-Identifier: Apache-2.0
// The values by column of a call, as float32.
#pragma once

#include "ops/weight_quant_matmul/weight_quant_matmul.h"

namespace anynpu {

// Columns [column, column + count) of one group.
void load_channels(const GemmKernel& kernel, const Channels& channels, int64_t group, int64_t column, int64_t count,
                   float* to);
// Fetches their lines ahead, past the nearest cache, where groups a power of two apart would meet in one place.
void fetch_channels(const Channels& channels, int64_t group, int64_t column, int64_t count);
// A float32 quant_scale is first encoded as trans_quant_param does, so that both forms agree.
void load_quantisation(const WeightQuantProblem& problem, float* scale, float* offset);

}  // namespace anynpu
