// SPDX-License-Identifier: Apache-2.0
// Attention to int8 rows with factors of heads and channels, which kv_cache_attention knows.
#pragma once

#include "ops/fused_attention/fused_attention.h"

namespace anynpu {

int64_t codes_attention_bytes(const FusedArgs& args);
// Whether it takes a call, by all but the lengths, and by these.
bool codes_attention_takes(const FusedArgs& args);
bool codes_attention_takes(const FusedArgs& args, const FusedSequence* sequences);
int32_t attend_to_codes(const FusedArgs& args, const FusedSequence* sequences, uintptr_t memory);

}  // namespace anynpu
