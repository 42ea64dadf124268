// SPDX-License-Identifier: Apache-2.0
#include "ops/grouped_matmul_combine/int8_avx512.inc"
#include "ops/grouped_matmul_combine/kernel.inc"

namespace anynpu {

extern const CombineKernel combine_avx512vnni;
const CombineKernel combine_avx512vnni = {
    Isa::avx512vnni,      {200, 2048, 1 << 18}, kColumns,       kTileRows,     kGroupSteps, nullptr, nullptr,   nullptr,
    multiply_scaled_int4, kInt8TileRows,        kInt8LeastRows, multiply_int8, scale_group, add_row, add_shared};

}  // namespace anynpu
