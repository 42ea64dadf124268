// SPDX-License-Identifier: Apache-2.0
// Attention of int8 queries to int8 keys and values, whose weights are rounded to int8 before they meet the values.
#pragma once

#include "ops/fused_attention/fused_attention.h"

namespace anynpu {

int64_t integer_attention_bytes(const FusedArgs& args, int64_t threads);
void attend_in_integers(const FusedArgs& args, const FusedSequence* sequences, int64_t threads, uintptr_t memory);

}  // namespace anynpu
