// SPDX-License-Identifier: Apache-2.0
#include "gemm/kernel_avx512.inc"

#include "gemm/bf16_amx.inc"

namespace anynpu {

extern const Bf16Scheme bf16_amx;
const Bf16Scheme bf16_amx = {3, kAmxRows, pack_bf16_planes, panel_bf16, multiply_bf16_planes};

}  // namespace anynpu
