// SPDX-License-Identifier: Apache-2.0
#include "ops/grouped_matmul_combine/kernel.inc"

namespace anynpu {

extern const CombineKernel combine_neon;
const CombineKernel combine_neon = {
    Isa::neon, {8, 1024, 1 << 15}, 0,       0,         0, nullptr, nullptr, nullptr, nullptr, 0, 0,
    nullptr,   scale_group,        add_row, add_shared};

}  // namespace anynpu
