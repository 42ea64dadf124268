// SPDX-License-Identifier: Apache-2.0
#include "simd/vec_portable.h"

namespace anynpu {
namespace {
constexpr int kTileRows = 4;
constexpr int kTileVecs = 2;
}  // namespace
}  // namespace anynpu

#include "gemm/bytes_portable.inc"
#include "gemm/f32.inc"
#include "gemm/unpack_any.inc"

namespace anynpu {

extern const GemmKernel gemm_portable;
const GemmKernel gemm_portable = {
    Isa::portable,
    load_floats,
    unpack_any,
    store_row,
    kTileRows,
    multiply_f32,
    0,
    nullptr,
    nullptr,
    nullptr,
    0,
    false,
    {nullptr, multiply_bytes},
    {},
    0,
    0,
    {},
    0,
    0,
    nullptr,
    {},
    {},
};

}  // namespace anynpu
