// SPDX-License-Identifier: Apache-2.0
#include "simd/vec_avx512vnni.h"

namespace anynpu {
namespace {
constexpr int kTileRows = 6;
constexpr int kTileVecs = 4;
}  // namespace
}  // namespace anynpu

#include "gemm/f32.inc"
#include "gemm/unpack_any.inc"

namespace anynpu {

extern const GemmKernel gemm_avx512vnni;
const GemmKernel gemm_avx512vnni = {
    Isa::avx512vnni, load_floats, unpack_any, store_row, kTileRows, panel_f32, multiply_f32, nullptr, {}, nullptr, nullptr, nullptr,
};

}  // namespace anynpu
