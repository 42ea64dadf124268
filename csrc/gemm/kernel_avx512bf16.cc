// SPDX-License-Identifier: Apache-2.0
#include "gemm/kernel_avx512.inc"

#include "gemm/pairs_avx512.inc"

namespace anynpu {
namespace {

constexpr GemmKernel bf16_kernel() {
  GemmKernel kernel = avx512_kernel(Isa::avx512bf16);
  kernel.pairs = {kPairRows, pack_pairs, multiply_pairs, stream_pairs, kDirectPairRows, direct_pairs};
  return kernel;
}

}  // namespace

extern const GemmKernel gemm_avx512bf16;
const GemmKernel gemm_avx512bf16 = bf16_kernel();

}  // namespace anynpu
