// SPDX-License-Identifier: Apache-2.0
#include "ops/grouped_matmul_combine/kernel.inc"

namespace anynpu {

extern const CombineKernel combine_avx512vnni;
const CombineKernel combine_avx512vnni = {Isa::avx512vnni, 0, 0, nullptr, nullptr, scale_group, add_row, add_shared};

}  // namespace anynpu
