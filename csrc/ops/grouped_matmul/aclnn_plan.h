// SPDX-License-Identifier: Apache-2.0
// What a call asks for, after checking how its tensors go together; what single products want is checked by their kernels.
#pragma once

#include "core/tensor.h"
#include "ops/grouped_matmul/aclnn_groups.h"
#include "ops/grouped_matmul/aclnn_product.h"

namespace anynpu::grouped {

struct Plan {
  Mode mode;
  bool paired;   // each x has its own weight
  bool stacked;  // one weight (E, K, N)
  int64_t groups;
};

inline bool has_list(const Args& args) { return present(args.group_list) || args.host_count >= 0; }

int32_t make_plan(const Args& args, Plan* plan);

}  // namespace anynpu::grouped
