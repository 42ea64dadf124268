// SPDX-License-Identifier: Apache-2.0
// The product of one group, by the kernels of the operators for single matrices, or of all groups, by that of
// grouped_matmul_combine.
#pragma once

#include <cstddef>

#include "anynpu.h"

namespace anynpu::grouped {

enum class Mode { floats, antiquant, int8, int4 };

struct Product {
  anynpu_tensor x, weight, bias, scale, antiquant_scale, antiquant_offset, pertoken_scale, y;
};

// Checks one product, or computes it when `running`. y without elements is left alone.
int32_t multiply(Mode mode, const Product& product, bool running);

// Products of a weight (E, K, N) in int8 or int4; rows behind the last group are 0.
int32_t check_combined(const Product& product, size_t* workspace_bytes);
int32_t run_combined(const Product& product, const int64_t* counts, void* workspace, size_t workspace_bytes);

}  // namespace anynpu::grouped
