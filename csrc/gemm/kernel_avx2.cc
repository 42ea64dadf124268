// SPDX-License-Identifier: Apache-2.0
#include "simd/products_avx2.h"

#include "gemm/kernel_avx2.inc"

#include "gemm/bytes_avx2.inc"

namespace anynpu {
namespace {

constexpr GemmKernel with_bytes() {
  GemmKernel kernel = avx2_kernel(Isa::avx2);
  kernel.multiply_digits[1] = multiply_bytes;
  kernel.stream_digits[1] = stream_bytes;
  kernel.sum_bytes = sum_bytes;
  return kernel;
}

}  // namespace

extern const GemmKernel gemm_avx2;
const GemmKernel gemm_avx2 = with_bytes();

}  // namespace anynpu
