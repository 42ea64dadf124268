// SPDX-License-Identifier: Apache-2.0
#include "ops/quant_matmul/int8_kernel.h"

namespace anynpu {

#define ANYNPU_KERNEL(tier) extern const Int8Kernel int8_##tier;
#include "ops/quant_matmul/kernels.def"
#undef ANYNPU_KERNEL

namespace {

constexpr const Int8Kernel* kKernels[] = {
#define ANYNPU_KERNEL(tier) &int8_##tier,
#include "ops/quant_matmul/kernels.def"
#undef ANYNPU_KERNEL
};

}  // namespace

const Int8Kernel& int8_kernel(int64_t rows) {
  return pick(kKernels, [=](const Int8Kernel& kernel) { return rows >= kernel.least_rows; });
}

}  // namespace anynpu
