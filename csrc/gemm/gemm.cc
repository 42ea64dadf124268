// SPDX-License-Identifier: Apache-2.0
#include "gemm/gemm.h"

namespace anynpu {

#define ANYNPU_KERNEL(tier) extern const GemmKernel gemm_##tier;
#include "gemm/kernels.def"
#undef ANYNPU_KERNEL

#if defined(__x86_64__)
// Tiers with one scheme more than avx512vnni are put together here: their units may run nothing on every CPU.
extern const Bf16Scheme bf16_amx;
extern const PairScheme pairs_avx512bf16;

namespace {

template <typename Scheme>
GemmKernel avx512_with(Isa isa, Scheme GemmKernel::* place, const Scheme& scheme) {
  GemmKernel kernel = gemm_avx512vnni;
  kernel.isa = isa;
  kernel.*place = scheme;
  return kernel;
}

}  // namespace

const GemmKernel gemm_amx = avx512_with(Isa::amx, &GemmKernel::bf16, bf16_amx);
const GemmKernel gemm_avx512bf16 = avx512_with(Isa::avx512bf16, &GemmKernel::pairs, pairs_avx512bf16);
#endif

const GemmKernel& gemm_kernel() {
  static constexpr const GemmKernel* kKernels[] = {
#define ANYNPU_KERNEL(tier) &gemm_##tier,
#include "gemm/kernels.def"
#undef ANYNPU_KERNEL
  };
  return pick(kKernels);
}

}  // namespace anynpu
