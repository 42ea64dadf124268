// SPDX-License-Identifier: Apache-2.0
// What the int8 matrix products need from an instruction set tier. No STL: the kernel units include this.
#pragma once

#include <cstdint>

#include "codec/format.h"
#include "core/cpu.h"
#include "gemm/gemm.h"

namespace anynpu {

constexpr int64_t kDirectK = 32;  // to a multiple of which few rows of x are padded
constexpr int64_t kAnyRows = int64_t{1} << 40;
constexpr int64_t kUnitSteps = 16;        // of tiers whose products take more than one step
constexpr int64_t kCachedSums = 1 << 17;  // in the second cache

// Runs of bytes, `apart` bytes from one to the next, that the next products will need: fetched while one goes on.
struct Int8Ahead {
  const uint8_t* at;  // or null
  int64_t apart;
  int64_t run_bytes;
  int64_t runs;
};

// One panel of bytes w + 128 times the packed rows [0, rows) of x. Rows come in tiles of
// `tile_rows` rows (the last may be lower); a tile of r rows is [row_steps / unit_steps][r rows][unit_steps] of four int8.
struct Int8Product {
  Panel panel;
  const int32_t* x;  // the first tile
  int32_t* c;        // [rows][c_stride], added to, modulo 2^32
  int64_t rows;
  int64_t first_step;  // of the panel in the rows of x, a multiple of unit_steps
  int64_t steps;
  int64_t row_steps;  // a multiple of unit_steps
  int64_t c_stride;
  Int8Ahead ahead = {};
};

// The same of one row of x and a panel of nibbles: of `product` all but the panel and what is ahead.
struct Int8NibblesProduct {
  Int8Product product;
  codec::Nibbles nibbles;
};

// Rows of x times a part of weights as they lie: int8, not packed32, and FRACTAL_NZ only as rows of k. Beyond their
// k the rows of x hold zeros up to a multiple of kDirectK.
struct Int8Direct {
  const WeightSource* weight;
  int64_t k;  // a multiple of kDirectK
  int64_t k_count;
  int64_t n;
  int64_t n_count;
  const int8_t* x;  // [rows][x_stride]
  int64_t x_stride;
  int64_t rows;
  int32_t* c;  // [rows][c_stride], in whole panels of which the columns beyond n_count are undefined
  int64_t c_stride;
};

// y = (sums + bias) * scale * row_scale + float_bias + offset, rounded to dtype; INT32: sums + bias.
struct Int8Output {
  const int32_t* sums;   // of x * (w + 128)
  int32_t compensation;  // 128 * sum of x
  int64_t count;
  int32_t dtype;
  void* y;
  const float* scale;
  const int32_t* bias;      // or null
  const float* float_bias;  // or null
  const float* offset;      // or null
  const float* row_scale;   // one value, or null
};

struct Int8Kernel {
  Isa isa;
  int64_t least_rows;  // of x: fewer are left to the tiers below
  int64_t tile_rows;
  int64_t unit_steps;    // 1 or kUnitSteps
  int64_t panel_k;       // of a panel at most
  int64_t stream_k;      // likewise, of one that few tiles of rows of x read from memory
  int64_t product_rows;  // of x in a product at most, whole tiles
  int64_t wide_sums;     // of a task at most that is wider than 128 columns
  void (*multiply)(const Int8Product& product);
  void (*multiply_nibbles)(const Int8NibblesProduct& product);  // or null
  void (*direct)(const Int8Direct& product);
  // Of x at most in a direct product, of weights whose rows are k or columns: more are faster with panels.
  int64_t direct_rows_of_k;
  int64_t direct_rows_of_n;
  int32_t (*sum)(const int8_t* values, int64_t count);
  void (*store)(const Int8Output& output);
};

// The kernel of the tier in force, or below, for so many rows of x.
const Int8Kernel& int8_kernel(int64_t rows);

}  // namespace anynpu
