// SPDX-License-Identifier: Apache-2.0
// Building blocks of the quantised matrix products. Weights of any layout are unpacked, a few k at a time, into one
// canonical panel: unsigned bytes q + bias (8 for int4, 128 for int8), [columns / 64][k / 4][64 columns][4 k], which is
// the operand order of vpdpbusd. The other schemes convert it while it sits in the nearest caches.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/cpu.h"

namespace anynpu {

constexpr int64_t kPanelColumns = 64;  // width of a panel
constexpr int64_t kSpan = 256;         // most k that a panel holds
constexpr int64_t kMaxDigits = 3;      // int8 digits of one activation

enum class WeightOrder : int32_t {
  rows_of_k,  // a row is one k, columns are neighbours
  rows_of_n,  // a row is one output column, k are neighbours (a transposed view)
  packed32,   // w4p32 or w8p32 of docs/formats.md, without its header
};

// Element e of row r starts (e / chunk) * chunk_bytes + r * row_bytes + (e % chunk) * bits / 8 bytes after data. A
// chunk is the inner block of FRACTAL_NZ, 64 bytes or a multiple of 32 bytes wide; without such blocks it is the whole
// row.
struct WeightSource {
  const uint8_t* data;
  WeightOrder order;
  int32_t bits;  // 4 or 8
  int64_t k;
  int64_t n;
  int64_t row_bytes;
  int64_t chunk;
  int64_t chunk_bytes;
};

// A part [k, k + k_count) x [n, n + n_count) of a weight; n is a multiple of kPanelColumns, k of 32, k_count <= kSpan.
struct WeightPart {
  int64_t k;
  int64_t k_count;
  int64_t n;
  int64_t n_count;
};

// 64 columns of weights as a product reads them: a canonical panel, or two strips of w4p32 or w8p32 where they lie.
struct Panel {
  const uint8_t* data;
  int64_t step_bytes = 4 * kPanelColumns;  // from one step to the next
  int64_t half_bytes = 2 * kPanelColumns;  // from columns 0 to 31 of a step to the others
  int32_t bits = 8;                        // 4 in w4p32
};

// The k of one epilogue: at most kSpan of them, all in one group.
struct KBlock {
  int64_t k;
  int64_t count;
};

// What two digits of a row of x leave, as one more digit: in the AVX2 tier a word of one value, in those of AVX-512 the
// bytes of a step of four k.
struct Rest {
  int64_t k;  // in its block
  int32_t digit;
};

// The rests of one row, in order of k. A row with more than `most` has count > most.
struct RestList {
  Rest* data;
  int64_t most;
  int64_t count;
};

// What an epilogue needs to know about one row of x in one k block.
struct DigitBlock {
  float scale;                       // x is scale * sum_d 256^d * digit[d], and a rest
  float sum;                         // of x over the block
  int32_t compensation[kMaxDigits];  // -bias * sum of a digit over the block; in AVX2 rests follow two digits
  // Of int8 rows in AVX2: whether the products of a block with int4 weights less 8 add up to no more than an int16, and what
  // such sums start from: -8 * the sums of k 0 and 1 and of k 2 and 3 of its steps, as words.
  bool fits_words;
  int32_t word_compensation;
  const Rest* rest;
  int64_t rest_count;
};

// Packed rows of x are [k blocks][tiles of rows][steps of k][rows of the tile][digits] of 4 bytes: one float, two
// bfloat16, four bfloat16 in pairs or four int8 digits; the AVX2 tier keeps two digits as int16, k 0 and 2 of a step
// and then k 1 and 3. Those of the AMX tier in bfloat16 are [k blocks][tiles of rows][groups of 16 steps][planes][rows
// of the tile][steps of the group].
// All tiles but the last have the same height.
struct PackedRow {
  int32_t* packed;
  DigitBlock* info;   // [k blocks][rows]
  int64_t rows;       // in all tiles
  int64_t tile;       // first row of the tile
  int64_t tile_rows;  // height of the tile
  int64_t row;        // in the tile
  RestList* rest;     // or null: rests are dropped
};

// What is read next, of which a product fetches `lines` cache lines, line_bytes apart, at each of its steps or blocks.
struct Ahead {
  const uint8_t* at;  // or null
  int64_t step_bytes;
  int64_t line_bytes;
  int64_t lines;
};

// One panel times packed rows of x, over the k of one block.
struct PanelProduct {
  const void* panel;         // [steps][kPanelColumns] of 4 bytes
  Panel codes;               // likewise, or of the scheme words where they lie
  const void* x;             // tiles
  const DigitBlock* blocks;  // [rows]
  const float* scale;        // [kPanelColumns]
  const float* offset;       // [kPanelColumns] or null
  float* c;                  // [rows][c_stride], added to
  int64_t rows;
  int64_t steps;
  int64_t c_stride;
  int16_t bias;    // of the bytes of a panel
  bool rests;      // x is two digits and rests
  int32_t planes;  // of bfloat16
  Ahead ahead;
};

// One panel times rows of x in float32, over the k of some blocks, kSpan at most.
struct FloatProduct {
  Panel panel;
  float bias;  // of its codes
  const KBlock* k_blocks;
  int64_t block_count;
  int64_t steps;   // k of all blocks
  const float* x;  // tiles, of which tile t begins at row rows * t / tiles: none is much lower than the others
  int64_t rows;
  int64_t tiles;
  int64_t tile;  // [tile, tile_end) of them
  int64_t tile_end;
  const float* scale;   // [blocks][channel_stride]
  const float* offset;  // likewise, or null
  int64_t channel_stride;
  float* c;  // [rows][c_stride], added to
  int64_t c_stride;
};

// Strips of 32 outputs in the packed32 format times rows of x, over the k of some blocks. But for the scheme pairs and
// int8 rows the rows are one tile, and all there are: for products bound by memory.
struct StreamProduct {
  const uint8_t* cells;
  int64_t strips;       // at most those of the kernel
  int64_t strip_bytes;  // from one to the next
  int32_t bits;
  const KBlock* k_blocks;
  int64_t block_count;
  const int32_t* x;          // tiles
  const DigitBlock* blocks;  // [k blocks][all_rows]
  const float* scale;        // [k blocks][channel_stride]
  const float* offset;       // likewise, or null
  int64_t channel_stride;
  float* c;          // [rows][c_stride], added to
  int64_t all_rows;  // of x
  int64_t row;       // the first
  int64_t rows;
  int64_t tile_rows;  // height of all tiles of int8 rows but the last
  int64_t c_stride;
  bool rests;                 // x is two digits and rests
  const uint8_t* next_cells;  // those that follow
  Ahead next_scale, next_offset;
};

// y = c + bias, rounded to dtype, or with quant_scale int8 saturate(round(y * quant_scale + quant_offset)).
struct RowOutput {
  void* y;
  int64_t stride;
  int64_t count;
  int32_t dtype;
  const float* bias;          // or null
  const float* quant_scale;   // or null
  const float* quant_offset;  // present with quant_scale
};

// The weights of one k block, straight from a raw layout, times one tile of rows: for products bound by memory.
struct DirectProduct {
  const WeightSource* weight;  // not packed32
  WeightPart part;
  WeightPart next;           // fetched ahead; k_count 0: none
  const int32_t* x;          // one tile, of digits or floats
  const DigitBlock* blocks;  // [rows]
  const float* scale;        // [part.n_count]
  const float* offset;       // likewise, or null
  int32_t* sums;             // scratch [part.n_count up to whole panels][rows * digits]
  float* c;                  // [rows][c_stride], added to
  int64_t rows;
  int64_t c_stride;
};

// Scheme bf16, null where the tier has none: x as the sum of at most most_planes bfloat16.
struct Bf16Scheme {
  int32_t most_planes;
  int64_t tile_rows;
  bool (*pack)(const float* x, const KBlock* blocks, int64_t block_count, int32_t planes, const PackedRow& row);
  void (*panel)(const uint8_t* panel, int64_t k_count, float bias, int32_t* out);
  void (*multiply)(const PanelProduct& product);
};

// Scheme pairs, null where the tier has none: bfloat16 x in pairs, two a step, and int4 weights.
struct PairScheme {
  int64_t tile_rows;
  bool (*pack)(const float* x, const KBlock* blocks, int64_t block_count, const PackedRow& row);
  void (*multiply)(const PanelProduct& product);
  void (*stream)(const StreamProduct& product);  // of any number of rows
  int64_t direct_rows;
  void (*direct)(const DirectProduct& product);  // of raw rows of k, for at most direct_rows rows of x
};

// Accumulator rows of one tile that fill the registers: of 64 columns with panels, of 32 when streaming.
constexpr int64_t kTileDigitRows = 6;
constexpr int64_t kStreamDigitRows = 12;
constexpr int64_t kStreamColumns = 32;

struct GemmKernel {
  Isa isa;
  // Reads `count` values (float32, float16 or bfloat16) that lie `stride` elements apart.
  void (*load_floats)(const void* from, int32_t dtype, int64_t stride, int64_t count, float* to);
  // Columns beyond part.n_count and k beyond part.k_count, up to full panels and steps, become q = 0.
  void (*unpack)(const WeightSource& weight, const WeightPart& part, uint8_t* panels);
  void (*store_row)(const float* c, const RowOutput& output);

  // Scheme f32: weights are (q + offset) * scale in float32, and products are accumulated in c.
  int64_t f32_tile_rows;  // at most
  void (*multiply_f32)(const FloatProduct& product);
  // The same for int8 weights and at most few_rows rows of x, which are floats; null where the tier has none.
  int64_t few_rows;
  void (*stream_f32)(const StreamProduct& product);
  void (*direct_f32)(const DirectProduct& product);

  // Scheme digits, null where the tier has none: x in block fixed point of 8 * digits bits, kept as int8 digits.
  // Packing returns false when the row wants the f32 scheme. Without multiply_digits only int4 weights and few rows take it:
  // with stream_digits prepacked weights, with direct_digits raw ones. One digit is x itself, in int8: all tiers multiply
  // it by int4 weights, and of its DigitBlock there is the compensation alone.
  bool (*pack_digits)(const float* x, const KBlock* blocks, int64_t block_count, int32_t digits, int32_t bias,
                      const PackedRow& row);
  // Two digits and rests take the place of three digits where a row has no more than K / rest_fraction of them; 0: never.
  int64_t rest_fraction;
  bool direct_rests;  // of raw rows of k too
  void (*multiply_digits[kMaxDigits + 1])(const PanelProduct& product);
  void (*stream_digits[kMaxDigits + 1])(const StreamProduct& product);
  int64_t stream_strips;   // of a stream product at most
  int64_t byte_tile_rows;  // of a stream product of more int8 rows than kStreamDigitRows
  void (*direct_digits[kMaxDigits + 1])(const DirectProduct& product);
  int64_t direct_sums;  // of a direct product of raw rows of k at most: longer runs against nearer caches

  // Scheme words, null where the tier has none: many rows of x in two digits and rests.
  int64_t word_tile_rows;
  void (*multiply_words)(const PanelProduct& product);

  Bf16Scheme bf16;
  PairScheme pairs;

  // Fills what a block of an int8 row is asked for; null: its compensation, by the caller.
  void (*sum_bytes)(const int8_t* x, int64_t count, int32_t bias, DigitBlock* info) = nullptr;
  int64_t direct_byte_rows_of_n = kStreamDigitRows;  // int8 rows that direct_digits takes at most of rows of n
  int64_t panel_run = 0;                             // columns of raw rows of k at least that go into panels at once
};

// The kernels of the tier in force.
const GemmKernel& gemm_kernel();

}  // namespace anynpu
