// SPDX-License-Identifier: Apache-2.0
// Attention of any kind, in float32.
#pragma once

#include "ops/fused_attention/fused_attention.h"

namespace anynpu {

// The memory of a thread.
int64_t float_attention_bytes(const FusedArgs& args);
// How many items of work a sequence has.
int64_t float_attention_items(const FusedArgs& args, const FusedSequence& sequence);
// All `items` of the sequences, with up to `threads` threads.
void attend_in_float(const FusedArgs& args, const FusedSequence* sequences, int64_t items, int64_t threads,
                     uintptr_t memory);

}  // namespace anynpu
