// SPDX-License-Identifier: Apache-2.0
#include "simd/vec_portable.h"

#include "ops/fused_attention/kernel.inc"

namespace anynpu {

extern const FusedKernel fused_attention_portable;
const FusedKernel fused_attention_portable = {Isa::portable, false, widen, dequantise, score, add_tile, join, narrow};

}  // namespace anynpu
