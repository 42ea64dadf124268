// SPDX-License-Identifier: Apache-2.0
#include "simd/vec_avx2.h"

namespace anynpu {
namespace {
constexpr int kTileRows = 6;
constexpr int kTileVecs = 2;
}  // namespace
}  // namespace anynpu

#include "gemm/f32.inc"
#include "gemm/unpack_any.inc"
#include "gemm/unpack_avx2.inc"

namespace anynpu {

extern const GemmKernel gemm_avx2;
const GemmKernel gemm_avx2 = {
    Isa::avx2, load_floats, unpack_avx2, store_row, kTileRows, panel_f32, multiply_f32,
    nullptr,   {},          {},         {},        nullptr,   nullptr,   nullptr,
};

}  // namespace anynpu
