// SPDX-License-Identifier: Apache-2.0
#include "gemm/kernel_avx512.inc"

#include "gemm/bf16_amx.inc"

namespace anynpu {
namespace {

constexpr GemmKernel amx_kernel() {
  GemmKernel kernel = avx512_kernel(Isa::amx);
  kernel.bf16 = {3, kAmxRows, pack_bf16_planes, panel_bf16, multiply_bf16_planes};
  return kernel;
}

}  // namespace

extern const GemmKernel gemm_amx;
const GemmKernel gemm_amx = amx_kernel();

}  // namespace anynpu
