// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "core/cpu.h"

namespace anynpu {

constexpr int kAttentionTileRows = 64;
// Vectors of head_size floats are padded to a multiple of this, with zeros, on every tier.
constexpr int64_t kAttentionPadding = 16;

// The running softmax of some queries of one kv head over the rows seen so far.
struct AttentionState {
  float* accumulator;  // [queries, padded], sums of weight * code
  float* maximum;      // [queries], of the scores
  float* weight_sum;   // [queries]
};

// Up to kAttentionTileRows rows of one kv head.
struct AttentionTile {
  int64_t head_size, padded;
  int32_t rows, queries;
  const int8_t* const* k_rows;
  const int8_t* const* v_rows;
  const int8_t* const* k_next;  // one address for each row, worth prefetching; or null
  const int8_t* const* v_next;
  const float* q;               // [queries, padded], times scale_k and the softmax scale
  const int32_t* visible;       // query i sees the first visible[i] rows of the tile
  float* scores;                // [queries, kAttentionTileRows] of scratch
  float* factors;               // [queries] of scratch
  float* expanded;              // [kAttentionTileRows, padded] of scratch, or null: codes are converted at every use
  AttentionState state;
};

// One query: the states of the splits of its rows, `stride` floats apart, become its output.
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

// One query as the tiles want it: q * scale * softmax_scale, padded with zeros. Strides count elements.
struct AttentionFold {
  int64_t head_size, padded;
  const void* q;
  const float* scale;
  int64_t q_stride, scale_stride;
  float softmax_scale;
  float* to;
};

struct AttentionKernel {
  Isa isa;
  void (*fold[kAttentionFloats])(const AttentionFold& fold);
  void (*tile)(const AttentionTile& tile);
  void (*finish[kAttentionFloats])(const AttentionFinish& finish);
};

}  // namespace anynpu
