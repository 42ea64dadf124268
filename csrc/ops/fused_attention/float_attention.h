// SPDX-License-Identifier: Apache-2.0
// Attention of any kind, in float32.
#pragma once

#include "ops/fused_attention/fused_attention.h"

namespace anynpu {

// Of `threads` threads.
int64_t float_attention_bytes(const FusedArgs& args, int64_t threads);
void attend_in_float(const FusedArgs& args, FusedSequence* sequences, int64_t threads, uintptr_t memory);

}  // namespace anynpu
