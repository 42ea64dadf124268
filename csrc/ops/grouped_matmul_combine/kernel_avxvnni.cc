// SPDX-License-Identifier: Apache-2.0
#include "simd/products_avxvnni.h"

#include "ops/grouped_matmul_combine/vectors_avx2.inc"

namespace anynpu {
namespace {

// Partial sums are int32.
bool small_sums(const int8_t*, int64_t) { return true; }

}  // namespace
}  // namespace anynpu

#include "ops/grouped_matmul_combine/int4_avx2.inc"

namespace anynpu {

extern const CombineKernel combine_avxvnni;
const CombineKernel combine_avxvnni = int4_kernel(Isa::avxvnni);

}  // namespace anynpu
