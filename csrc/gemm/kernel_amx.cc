// SPDX-License-Identifier: Apache-2.0
#include "simd/vec_avx512vnni.h"

namespace anynpu {
namespace {
constexpr int kTileRows = 6;
constexpr int kTileVecs = 4;
}  // namespace
}  // namespace anynpu

#include "gemm/bf16_amx.inc"
#include "gemm/digits_avx512.inc"
#include "gemm/direct_avx512.inc"
#include "gemm/f32.inc"
#include "gemm/unpack_any.inc"
#include "gemm/unpack_avx512.inc"

namespace anynpu {

extern const GemmKernel gemm_amx;
const GemmKernel gemm_amx = {
    Isa::amx,
    load_floats,
    unpack_avx512,
    store_row,
    kTileRows,
    panel_f32,
    multiply_f32,
    0,
    nullptr,
    nullptr,
    pack_digits,
    12,
    false,
    {nullptr, multiply_digits<1>, multiply_digits<2>, multiply_digits<3>},
    {nullptr, stream_digits<1>, stream_digits<2>, stream_digits<3>},
    {nullptr, direct_digits<1>, direct_digits<2>, direct_digits<3>},
    49152,
    0,
    nullptr,
    3,
    kAmxRows,
    pack_bf16_planes,
    panel_bf16,
    multiply_bf16_planes,
};

}  // namespace anynpu
