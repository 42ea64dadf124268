// SPDX-License-Identifier: Apache-2.0
// How a call is computed: the scheme, its tiles and threads.
#pragma once

#include "ops/weight_quant_matmul/weight_quant_matmul.h"

namespace anynpu {

enum class Scheme { f32, digits, words, bf16, pairs };

struct WeightQuantPlan {
  Scheme scheme;
  int32_t digits;        // of the digits and words schemes, planes of bf16, dwords of a step of pairs
  int64_t step_k;        // k per step
  int64_t row_dwords;    // packed size of one row
  int64_t most_rests;    // of a row in two digits, for which others are taken if it has more; 0: rests are not kept
  bool stream;           // prepacked weights and so few rows that they are one tile: no panels
  int64_t stream_span;   // most k of it at a time
  int64_t stream_block;  // columns of a task
  bool direct;           // raw weights, likewise
  int64_t chunk_rows;    // rows of x packed at once
  int64_t block_count;
  int64_t column_block;
  int64_t row_parts;
  int64_t tile_rows;     // of int8 rows
  int64_t row_multiple;  // of the rows of a part: whole tiles of this scheme and of f32
  int64_t shares;        // of the columns, each with x and a storage of its own
  int64_t threads;       // of a share
};

// The height of all parts but the last of so many rows of x.
int64_t part_rows(const WeightQuantPlan& plan, int64_t rows);

WeightQuantPlan make_plan(const WeightQuantProblem& problem, const GemmKernel& kernel);

}  // namespace anynpu
