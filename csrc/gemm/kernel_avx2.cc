// SPDX-License-Identifier: Apache-2.0
#include "simd/vec_avx2.h"

namespace anynpu {
namespace {
constexpr int kTileRows = 6;
constexpr int kTileVecs = 2;
}  // namespace
}  // namespace anynpu

#include "gemm/bytes_avx2.inc"
#include "gemm/digits_avx2.inc"
#include "gemm/direct_avx2.inc"
#include "gemm/f32.inc"
#include "gemm/few_f32_avx2.inc"
#include "gemm/panel_words_avx2.inc"
#include "gemm/unpack_any.inc"
#include "gemm/unpack_avx2.inc"

namespace anynpu {

extern const GemmKernel gemm_avx2;
const GemmKernel gemm_avx2 = {
    Isa::avx2,
    load_floats,
    unpack_avx2,
    store_row,
    kTileRows,
    panel_f32,
    multiply_f32,
    kFewRows,
    stream_f32,
    direct_f32,
    pack_digits,
    8,
    true,
    {nullptr, multiply_bytes},
    {nullptr, stream_bytes, stream_digits<2>, stream_digits<3>},
    1,
    kStreamDigitRows,
    {nullptr, nullptr, direct_digits<2>, direct_digits<3>},
    24576,
    kWordRows,
    multiply_words,
    {},
    {},
    sum_bytes,
};

}  // namespace anynpu
