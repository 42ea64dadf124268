// SPDX-License-Identifier: Apache-2.0
#include "gemm/gemm.h"

namespace anynpu {

#define ANYNPU_KERNEL(tier) extern const GemmKernel gemm_##tier;
#include "gemm/kernels.def"
#undef ANYNPU_KERNEL

const GemmKernel& gemm_kernel() {
  static constexpr const GemmKernel* kKernels[] = {
#define ANYNPU_KERNEL(tier) &gemm_##tier,
#include "gemm/kernels.def"
#undef ANYNPU_KERNEL
  };
  return pick(kKernels);
}

}  // namespace anynpu
