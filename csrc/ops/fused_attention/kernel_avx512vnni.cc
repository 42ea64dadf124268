// SPDX-License-Identifier: Apache-2.0
#include "simd/vec_avx512vnni.h"

#include "ops/fused_attention/kernel.inc"

namespace anynpu {

extern const FusedKernel fused_attention_avx512vnni;
const FusedKernel fused_attention_avx512vnni = {Isa::avx512vnni, false,    widen, dequantise,
                                                score,           add_tile, join,  narrow};

}  // namespace anynpu
