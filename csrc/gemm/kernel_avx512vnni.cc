// SPDX-License-Identifier: Apache-2.0
#include "gemm/kernel_avx512.inc"

namespace anynpu {

extern const GemmKernel gemm_avx512vnni;
const GemmKernel gemm_avx512vnni = avx512_kernel();

}  // namespace anynpu
