// SPDX-License-Identifier: Apache-2.0
#include "simd/vec_neon.h"

#include "ops/fused_attention/kernel.inc"

namespace anynpu {

extern const FusedKernel fused_attention_neon;
const FusedKernel fused_attention_neon = {Isa::neon, false, widen, dequantise, score, add_tile, join, narrow};

}  // namespace anynpu
