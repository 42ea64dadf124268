// SPDX-License-Identifier: Apache-2.0
#include "simd/vec_avx512vnni.h"

#include "ops/quant_matmul/store_avx512.inc"

#define ANYNPU_TILE_PRODUCT _tile_dpbsud
#include "gemm/panel_amx.inc"

namespace anynpu {
namespace {

constexpr int64_t kLeastRows = 33;  // fewer take AVX-512 less time, the more so where columns lie side by side

static_assert(kAmxSteps == kUnitSteps);

void multiply(const Int8Product& product) {
  Fetch fetch(product.ahead, (product.rows + kAmxRows - 1) / kAmxRows);
  Tiles tiles;
  for_each_tile<kAmxRows>(product, [&](int rows, const int32_t* x, int32_t* c) {
    fetch.some();
    add_panel_products(tiles, product.panel, reinterpret_cast<const uint8_t*>(x), rows, product.steps, 1, kAmxRowBytes,
                       {c, product.c_stride * 4, false});
  });
  tiles.release();
}

}  // namespace

extern const Int8Kernel int8_amx;
const Int8Kernel int8_amx = {Isa::amx, kLeastRows, kAmxRows, kUnitSteps, kSpan, kSpan, kAnyRows,          kCachedSums,
                             multiply, nullptr,    nullptr,  0,          0,     sum,   store_in_registers};

}  // namespace anynpu
