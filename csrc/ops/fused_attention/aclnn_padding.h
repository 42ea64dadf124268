// SPDX-License-Identifier: Apache-2.0
// Sequences at the right ends of their rows, but for so many: what queries see of keys, as a mask.
#pragma once

#include "core/tensor.h"
#include "ops/fused_attention/aclnn_attention.h"

namespace anynpu::attention {

inline bool is_padded(const Args& args) { return present(args.q_padding) || present(args.kv_padding); }

// The mask for `args`, without data; it takes the place of all that hides keys from queries.
anynpu_tensor padded_mask(const Args& args);
// Writes it.
void fill_padded_mask(const Args& args, uint8_t* mask);

}  // namespace anynpu::attention
