// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "core/cpu.h"

namespace anynpu {

constexpr int kFusedRows = 64;         // of keys and values that are taken together
constexpr int64_t kFusedPadding = 16;  // rows of floats are padded to a multiple of this, with zeros
// Up to here all kv heads share a work item, which takes their rows in the order of memory; more pay for copies of rows.
constexpr int64_t kFusedFewQueries = 16;

// Rows of keys or values of one kv head, in a float dtype and padded. Past the last one it is repeated.
struct FusedRows {
  int32_t dtype;
  const void* at[kFusedRows];
};

// What is fetched into the second cache while rows are taken, one of these for each of them.
struct FusedAhead {
  int32_t rows;
  int64_t bytes;  // of each
  const char* at[kFusedRows];
};

// Some queries of one kv head, in float32 and padded, and up to kFusedRows rows of it.
struct FusedTile {
  int64_t key_size, value_size;  // padded
  int32_t rows, queries;
  const float* q;  // [queries, key_size]
  FusedRows k, v;
  FusedAhead k_ahead, v_ahead;
  // [queries, kFusedRows], the scores: filled by `score`, then set to -infinity where hidden, then turned into weights.
  float* scores;
  float* accumulator;  // [queries, value_size], sums of weight * value
  float* maximum;      // [queries], of the scores
  float* weight_sum;   // [queries]
};

// How a row of codes becomes floats: (code + offset[i] + row_offset) * (scale[i] * row_scale).
struct FusedCodes {
  const float* scale;
  const float* offset;
  float row_scale, row_offset;
};

struct FusedKernel {
  Isa isa;
  bool copies;  // rows itself where queries are many, so that they need not be in float32
  void (*widen)(int32_t dtype, const void* from, int64_t count, float* to);
  void (*dequantise)(const int8_t* from, const FusedCodes& codes, int64_t count, float* to);
  void (*score)(const FusedTile& tile, float softmax_scale);
  void (*add)(const FusedTile& tile);
  // to[i] = to[i] * factor + from[i] * from_factor
  void (*join)(const float* from, float from_factor, float factor, int64_t count, float* to);
  // to[i] = from[i] / divisor, in a float dtype
  void (*narrow)(int32_t dtype, const float* from, float divisor, int64_t count, void* to);
};

}  // namespace anynpu
