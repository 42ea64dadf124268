// SPDX-License-Identifier: Apache-2.0
// sdot multiplies signed bytes: weights lose their 128, and what their sums lack, 128 times the sum of x, is there from the
// beginning.
#include "simd/vec_neon.h"

#include "ops/quant_matmul/store.inc"

namespace anynpu {
namespace {

constexpr int kTileRows =
    8;  // with two vectors of weights they share the work of making those signed among the most rows
constexpr int kLaneSteps = 4;  // of a row in a vector
static_assert(kUnitSteps % kLaneSteps == 0);

// Vectors of four columns, of half a panel at most, whose sums stay in registers for so many rows.
constexpr int vectors_for(int rows) { return rows <= 2 ? 8 : rows <= 4 ? 4 : 2; }

// FCVTXN rounds to odd, which is what is wanted.
void scale_exactly(const int32_t* sums, const float* scale, int64_t count, float* values) {
  int64_t i = 0;
  for (; i + 2 <= count; i += 2) {
    const float64x2_t sum = vcvtq_f64_s64(vmovl_s32(vld1_s32(sums + i)));
    vst1_f32(values + i, vcvtx_f32_f64(vmulq_f64(sum, vcvt_f64_f32(vld1_f32(scale + i)))));
  }
  scale_exactly_one_by_one(sums + i, scale + i, count - i, values + i);
}

inline int8x16_t load_steps(const int32_t* x) { return vreinterpretq_s8_s32(vld1q_s32(x)); }

// Step kStep of those in the vectors of x.
template <int kStep, int kRows, int kVecs>
inline __attribute__((always_inline)) void add_step(const uint8_t* weights, const int8x16_t (&x)[kRows],
                                                    int32x4_t (&sums)[kRows][kVecs]) {
  int8x16_t values[kVecs];
#pragma GCC unroll 8
  for (int vec = 0; vec < kVecs; ++vec) {
    values[vec] = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(weights + 16 * vec), vdupq_n_u8(0x80)));
  }
#pragma GCC unroll 8
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 8
    for (int vec = 0; vec < kVecs; ++vec) {
      sums[row][vec] = vdotq_laneq_s32(sums[row][vec], values[vec], x[row], kStep);
    }
  }
}

template <int kRows, int kVecs>
inline __attribute__((always_inline)) void add_lane_steps(const uint8_t* weights, int64_t step_bytes,
                                                          const int8x16_t (&x)[kRows],
                                                          int32x4_t (&sums)[kRows][kVecs]) {
  add_step<0>(weights, x, sums);
  add_step<1>(weights + step_bytes, x, sums);
  add_step<2>(weights + 2 * step_bytes, x, sums);
  add_step<3>(weights + 3 * step_bytes, x, sums);
}

// Some columns of half a panel. x is there in whole units of steps.
template <int kRows, int kVecs>
void tile_columns(const Int8Product& product, const uint8_t* weights, const int32_t* x, const int32_t (&missing)[kRows],
                  int32_t* c) {
  int32x4_t sums[kRows][kVecs];
#pragma GCC unroll 8
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 8
    for (int vec = 0; vec < kVecs; ++vec) {
      sums[row][vec] = vaddq_s32(vld1q_s32(c + row * product.c_stride + 4 * vec), vdupq_n_s32(missing[row]));
    }
  }
  const int64_t step_bytes = product.panel.step_bytes;
  for (int64_t first = 0; first < product.steps; first += kLaneSteps, weights += kLaneSteps * step_bytes) {
    const int32_t* at = x + first / kUnitSteps * kRows * kUnitSteps + first % kUnitSteps;
    int8x16_t values[kRows];
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) values[row] = load_steps(at + row * kUnitSteps);
    const int64_t left = product.steps - first;
    if (left >= kLaneSteps) {
      add_lane_steps(weights, step_bytes, values, sums);
    } else {
      add_step<0>(weights, values, sums);
      if (left > 1) add_step<1>(weights + step_bytes, values, sums);
      if (left > 2) add_step<2>(weights + 2 * step_bytes, values, sums);
    }
  }
#pragma GCC unroll 8
  for (int row = 0; row < kRows; ++row) {
#pragma GCC unroll 8
    for (int vec = 0; vec < kVecs; ++vec) vst1q_s32(c + row * product.c_stride + 4 * vec, sums[row][vec]);
  }
}

// 128 times the sum of x over the steps of a product.
inline int32_t missing_of(const Int8Product& product, int rows, const int32_t* x) {
  const int8x16_t ones = vdupq_n_s8(1);
  int32x4_t sums = vdupq_n_s32(0);
  for (int64_t first = 0; first < product.steps; first += kLaneSteps) {
    const int64_t left = product.steps - first;
    const int32x4_t lanes = {0, 1, 2, 3};
    const int8x16_t values = load_steps(x + first / kUnitSteps * rows * kUnitSteps + first % kUnitSteps);
    const uint32x4_t kept = vcltq_s32(lanes, vdupq_n_s32(left < kLaneSteps ? static_cast<int32_t>(left) : kLaneSteps));
    sums = vdotq_s32(sums, vandq_s8(values, vreinterpretq_s8_u32(kept)), ones);
  }
  return 128 * vaddvq_s32(sums);
}

template <int kRows>
void tile(int rows, const Int8Product& product, const int32_t* x, int32_t* c, Fetch* fetch) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return tile<kRows - 1>(rows, product, x, c, fetch);
  }
  constexpr int kVecs = vectors_for(kRows);
  int32_t missing[kRows];
  for (int row = 0; row < kRows; ++row) missing[row] = missing_of(product, kRows, x + row * kUnitSteps);
  for (int64_t column = 0; column < kPanelColumns; column += 4 * kVecs) {
    fetch->some();
    const uint8_t* weights = product.panel.data + column / 32 * product.panel.half_bytes + column % 32 * 4;
    tile_columns<kRows, kVecs>(product, weights, x, missing, c + column);
  }
}

void multiply(const Int8Product& product) {
  Fetch fetch(product.ahead, (product.rows + kTileRows - 1) / kTileRows * (kPanelColumns / 8));
  for_each_tile<kTileRows>(
      product, [&](int rows, const int32_t* x, int32_t* c) { tile<kTileRows>(rows, product, x, c, &fetch); });
}

}  // namespace

extern const Int8Kernel int8_neon;
const Int8Kernel int8_neon = {Isa::neon, 0,       kTileRows, kUnitSteps, kSpan, kSpan, kAnyRows, kCachedSums,
                              multiply,  nullptr, nullptr,   0,          0,     sum,   store};

}  // namespace anynpu
