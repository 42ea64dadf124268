// SPDX-License-Identifier: Apache-2.0
#include "simd/vec_neon.h"

namespace anynpu {
namespace {
constexpr int kTileRows = 4;
constexpr int kTileVecs = 4;
}  // namespace
}  // namespace anynpu

#include "gemm/f32.inc"

#include "gemm/digits_neon.inc"
#include "gemm/unpack_neon.inc"

namespace anynpu {

extern const GemmKernel gemm_neon;
const GemmKernel gemm_neon = {
    Isa::neon,
    load_floats,
    unpack_neon,
    store_row,
    kTileRows,
    multiply_f32,
    0,
    nullptr,
    nullptr,
    pack_digits,
    12,
    false,
    {nullptr, multiply_digits<1>, multiply_digits<2>, multiply_digits<3>},
    {nullptr, stream_digits<1>, stream_digits<2>, stream_digits<3>},
    1,
    kStreamDigitRows,
    {},
    0,
    0,
    nullptr,
    {},
    {},
};

}  // namespace anynpu
