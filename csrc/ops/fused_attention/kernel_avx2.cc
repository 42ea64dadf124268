// SPDX-License-Identifier: Apache-2.0
#include "simd/vec_avx2.h"

#include "ops/fused_attention/kernel.inc"
#include "ops/fused_attention/panels_avx2.inc"

namespace anynpu {

extern const FusedKernel fused_attention_avx2;
const FusedKernel fused_attention_avx2 = {Isa::avx2,       true,          widen, dequantise,
                                          score_by_panels, add_by_panels, join,  narrow};

}  // namespace anynpu
