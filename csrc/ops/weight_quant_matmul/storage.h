// SPDX-License-Identifier: Apache-2.0
// The memory of a call.
#pragma once

#include <algorithm>

#include "core/parallel.h"
#include "ops/weight_quant_matmul/plan.h"

namespace anynpu {

struct ThreadScratch {
  float* row;        // one row of x, padded to whole steps
  uint8_t* panels;   // one span of a block of columns
  int32_t* operand;  // a panel in bfloat16
  int32_t* sums;     // of direct products
  float* scale;      // of the blocks of a span
  float* offset;
  float* c;
};

// Everything the run needs, in one allocation.
struct WeightQuantStorage {
  KBlock* blocks;
  float* bias;
  float* quant_scale;
  float* quant_offset;
  int32_t* packed;
  DigitBlock* digit_blocks;
  Rest* rests;  // [rows][most_rests]
  RestList* rest_lists;
  uint8_t* wants_f32;  // [rows]
  int64_t* row_of;     // rows that fell back to f32
  ThreadScratch* threads;
  int64_t bytes;
};

// With a null base the parts are null, and only `bytes` counts.
WeightQuantStorage lay_out(const WeightQuantProblem& problem, const WeightQuantPlan& plan, void* base);

// Runs fn(first, last, scratch) on slices of [0, count), each with the scratch of one thread.
template <typename Function>
void parallel_slices(const WeightQuantStorage& storage, int64_t slices, int64_t count, const Function& fn) {
  slices = std::min(slices, count);
  parallel_for(slices, 1, [&](int64_t begin, int64_t end) {
    for (int64_t slice = begin; slice < end; ++slice) {
      fn(count * slice / slices, count * (slice + 1) / slices, storage.threads[slice]);
    }
  });
}

}  // namespace anynpu
