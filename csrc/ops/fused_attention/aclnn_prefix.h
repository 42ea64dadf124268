// SPDX-License-Identifier: Apache-2.0
// Keys and values that all sequences share, copied in front of their own.
#pragma once

#include <memory>

#include "core/tensor.h"
#include "ops/fused_attention/aclnn_attention.h"

namespace anynpu::attention {

inline bool has_prefix(const Args& args) { return present(args.k_prefix); }

// `own` (B, S, N, D) behind the first `count` tokens of a prefix, without data.
anynpu_tensor joined(const anynpu_tensor& own, int64_t count);
// Makes it; `memory` holds it.
int32_t join(const anynpu_tensor& prefix, const anynpu_tensor& own, int64_t count, anynpu_tensor* made,
             std::unique_ptr<uint8_t[]>* memory);

}  // namespace anynpu::attention
