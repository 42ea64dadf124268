// SPDX-License-Identifier: Apache-2.0
#include "simd/products_avxvnni.h"

#include "gemm/kernel_avx2.inc"

#include "gemm/bytes_avxvnni.inc"

namespace anynpu {
namespace {

constexpr GemmKernel with_bytes() {
  GemmKernel kernel = avx2_kernel(Isa::avxvnni);
  kernel.multiply_digits[1] = multiply_bytes;
  kernel.stream_digits[1] = stream_bytes;
  return kernel;
}

}  // namespace

extern const GemmKernel gemm_avxvnni;
const GemmKernel gemm_avxvnni = with_bytes();

}  // namespace anynpu
