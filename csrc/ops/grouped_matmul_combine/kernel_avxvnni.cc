// SPDX-License-Identifier: Apache-2.0
#include "simd/products_avxvnni.h"

#include "ops/grouped_matmul_combine/vectors_avx2.inc"

namespace anynpu {
namespace {

constexpr int kLongBlocks = 2;
// Partial sums are int32.
bool small_sums(const int8_t*, int64_t) { return true; }

}  // namespace
}  // namespace anynpu

#include "ops/grouped_matmul_combine/int4_avx2.inc"

namespace anynpu {

extern const CombineKernel combine_avxvnni;
const CombineKernel combine_avxvnni = {Isa::avxvnni,
                                       {8, 1024, 1 << 15},
                                       kColumns,
                                       kTileRows,
                                       kBlockSteps,
                                       multiply_int4,
                                       small_sums,
                                       scale_int4,
                                       nullptr,
                                       0,
                                       0,
                                       nullptr,
                                       scale_group,
                                       add_row,
                                       add_shared};

}  // namespace anynpu
