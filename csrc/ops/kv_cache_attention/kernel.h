// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "core/cpu.h"

namespace anynpu {

constexpr int kAttentionTileRows = 128;
constexpr int kAttentionRuns = 8;            // of a tile, whose rows some kernels take in turn
constexpr int kAttentionMostRowsAhead = 16;  // with all heads some 16 KiB
constexpr int kAttentionFewRows = 16;  // of digits of a head: up to here codes are multiplied as they lie in the cache
// Rows of head_size elements are padded to a multiple of this, with zeros, on every tier.
constexpr int64_t kAttentionPadding = 32;

// The running softmax of some queries of one kv head over the rows seen so far.
struct AttentionState {
  float* accumulator;  // [queries, padded], sums of weight * code
  float* maximum;      // [queries], of the scores
  float* weight_sum;   // [queries]
  AttentionState after(int64_t floats) const { return {accumulator + floats, maximum + floats, weight_sum + floats}; }
};

// Up to kAttentionTileRows rows of kv heads that lie side by side. Queries and weights are fixed-point numbers of one or two
// 16-bit digits: a value is the sum of its digits, each times its step. All digits of a query are multiplied as if they were
// queries.
struct AttentionTile {
  int64_t head_size, padded;
  int32_t rows, rows_known, heads, queries, digits;
  const int8_t* k;  // row i begins at k[offsets[i]]
  const int8_t* v;
  const int64_t* offsets;  // [rows_known], those of the tile, in any order where all is visible, and of what comes next
  const int16_t* q;        // [heads, queries, digits, padded], times scale_k and the softmax scale
  const float* q_steps;    // [heads, queries, digits]
  const int32_t* visible;  // query i sees the first visible[i] rows of the tile
  float* scores;           // [heads, queries, kAttentionTileRows] of scratch
  float* maxima;           // [queries] of scratch, of the scores of a head
  int16_t* weights;        // [heads, queries, digits, kAttentionTileRows] of scratch
  float* weight_steps;     // [heads, queries, digits] of scratch
  int32_t* totals;         // [heads, kAttentionFewRows, the larger of padded and kAttentionTileRows] of scratch
  int8_t* pairs;           // [kAttentionTileRows, padded] of scratch
  AttentionState state;    // of the first head, those of the others state_stride floats apart
  int64_t state_stride;
};

// One query: the states of the splits of its rows, `stride` floats apart, become its output. Uses the maxima up.
struct AttentionFinish {
  int64_t head_size;
  int64_t splits, stride;
  AttentionState state;
  const float* scale_v;   // strides count elements
  const float* offset_v;  // or null
  int64_t scale_stride, offset_stride;
  void* output;
};

enum AttentionFloat { kAttentionFloat32, kAttentionFloat16, kAttentionBFloat16, kAttentionFloats };  // of q, output

// One query as the tiles want it: q * scale * softmax_scale in fixed point. Strides count elements.
struct AttentionFold {
  int64_t head_size, padded;
  const void* q;
  const float* scale;
  int64_t q_stride, scale_stride;
  float softmax_scale;
  int32_t digits;
  int16_t* to;   // [digits, padded]
  float* steps;  // [digits]
};

struct AttentionKernel {
  Isa isa;
  // Whether few queries go through kAttentionRuns parts of a tile side by side, where all of them see all of its rows.
  bool reads_runs;
  int32_t rows_ahead;  // that are fetched while others are multiplied, at most kAttentionMostRowsAhead
  void (*fold[kAttentionFloats])(const AttentionFold& fold);
  void (*tile)(const AttentionTile& tile);
  void (*finish[kAttentionFloats])(const AttentionFinish& finish);
};

}  // namespace anynpu
