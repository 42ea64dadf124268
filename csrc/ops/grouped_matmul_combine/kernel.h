// SPDX-License-Identifier: Apache-2.0
// What grouped_matmul_combine needs from an instruction set tier. No STL: the kernel units include this.
#pragma once

#include <cstdint>

#include "core/cpu.h"
#include "ops/quant_matmul/int8_kernel.h"

namespace anynpu {

// values += (sums - of_row - of_column) * scale, modulo 2^32 within the brackets; the sums start again from zero.
struct GroupSums {
  int32_t* sums;  // [rows][sums_stride], of scale_int4 [panels][rows][panel_columns]
  int64_t sums_stride;
  float* values;  // [rows][values_stride]
  int64_t values_stride;
  const int32_t* of_row;     // [rows]
  const int32_t* of_column;  // [columns]
  const float* scale;        // [columns]
  int64_t rows;
  int64_t columns;
};

// The products of packed rows of x with int4 weights that lie in rows of k, bytes q = w + 8, over `steps` steps of four
// k.
struct Int4Product {
  const uint8_t* weight;  // the first panel of panel_columns columns: rows of half as many bytes, row_bytes apart
  int64_t row_bytes;
  int64_t panel_bytes;  // between panels
  int64_t panels;
  int64_t steps;
  const int32_t* x;  // [blocks of block_steps steps][tiles of tile_rows rows][steps][rows of the tile]
  int64_t rows;
  int64_t first_step;
  bool long_sums;  // steps are a multiple of two blocks, and x has small_sums
  // Zeros at first, the columns of a panel in an order of the kernel: c - 8 * column_sums are the sums of (x - 8) * q.
  int32_t* c;            // [panels][rows][panel_columns]
  int32_t* column_sums;  // [panels][panel_columns]
};

// The same weights, scaled: values += sum over some groups of the sums of (x - 8) * w * scale.
struct ScaledInt4Product {
  const uint8_t* weight;  // as in Int4Product
  int64_t row_bytes;
  int64_t panel_bytes;
  int64_t panels;
  const uint8_t* next;  // what the product after it begins with, or this one
  int64_t first_group;
  int64_t groups;
  int64_t group_steps;
  const int32_t* x;  // [tiles of tile_rows rows][row_steps][rows of the tile]
  int64_t rows;      // the last one of ones
  int64_t tile_rows;
  int64_t row_steps;
  const int32_t* of_rows;  // [groups][rows]
  const int64_t* scale;    // [groups][scale_stride], floats in the low halves
  int64_t scale_stride;
  int32_t* partial;  // [panels][rows][panel_columns], undefined before and after
  float* scaled;     // likewise
  float* values;     // [rows - 1][values_stride]
  int64_t values_stride;
};

// The products of packed rows of x with bytes w + 128 of int8 weights w that lie in rows of k.
struct Int8WeightProduct {
  const uint8_t* weight;  // the first panel of 64 columns
  int64_t row_bytes;
  int64_t panels;
  int64_t steps;     // of four k
  const int32_t* x;  // [tiles of tile_rows rows][row_steps][rows of the tile]
  int64_t rows;
  int64_t tile_rows;
  int64_t row_steps;
  int32_t* c;  // [rows][c_stride], undefined before
  int64_t c_stride;
  const uint8_t* next;  // the weight of the product after it, or this one
};

// Tasks that unpack weights which lie in rows of k, and multiply them by int8 products.
struct UnpackingTasks {
  int64_t wide_rows;     // of an expert, up to which a task is wide, so that it reads long stretches of memory
  int64_t wide_columns;  // which it has then
  int64_t panel_bytes;   // at most
};

struct CombineKernel {
  Isa isa;
  UnpackingTasks unpacking;
  // Of the product with int4 weights; null: unpacking and the int8 product do.
  int64_t panel_columns;
  int64_t tile_rows;
  int64_t block_steps;
  void (*multiply_int4)(const Int4Product& product);
  // Whether the products of a row of x may be added up over two blocks, whatever the weights; null: they never may.
  bool (*small_sums)(const int8_t* x, int64_t k);
  void (*scale_int4)(const GroupSums& group);                      // of these products
  void (*multiply_scaled_int4)(const ScaledInt4Product& product);  // in place of the three; or null
  // Of int8 weights, in tiles of so many rows; null: unpacking and the int8 product do. Fewer rows of an expert are left
  // to direct products.
  int64_t int8_tile_rows;
  int64_t int8_least_rows;
  void (*multiply_int8)(const Int8WeightProduct& product);
  void (*scale_group)(const GroupSums& group);
  // y += values * first * second.
  void (*add_row)(const float* values, float first, float second, int64_t count, float* y);
  // y += shared * weight; bfloat16.
  void (*add_shared)(const uint16_t* shared, float weight, int64_t count, float* y);
};

}  // namespace anynpu
