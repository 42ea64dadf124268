// SPDX-License-Identifier: Apache-2.0
#include "gemm/kernel_avx512.inc"

#include "gemm/pairs_avx512.inc"

namespace anynpu {

extern const PairScheme pairs_avx512bf16;
const PairScheme pairs_avx512bf16 = {kPairRows,    pack_pairs,      multiply_pairs,
                                     stream_pairs, kDirectPairRows, direct_pairs};

}  // namespace anynpu
