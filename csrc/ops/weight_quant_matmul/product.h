// SPDX-License-Identifier: Apache-2.0
// One weight and the rows of x that meet it, for one share of the columns.
#pragma once

#include "ops/weight_quant_matmul/k_blocks.h"
#include "ops/weight_quant_matmul/row_packer.h"

namespace anynpu {

// Of the blocks of a span.
struct SpanScales {
  const float* scale;   // [blocks][stride]
  const float* offset;  // likewise, or null
  int64_t stride;
};

class WeightQuantProduct {
 public:
  WeightQuantProduct(const WeightQuantProblem& problem, const WeightQuantPlan& plan, const WeightQuantStorage& storage,
                     const GemmKernel& kernel, const WeightSource& weight, int64_t share)
      : problem_(problem), plan_(plan), storage_(storage), kernel_(kernel), weight_(weight), share_(share) {}

  // Rows [first, first + count) of x, counted through all batches; `fallback` has room for them in float32 where that
  // is not the scheme of the plan.
  void run(int64_t first, int64_t count, int32_t* fallback) const;

 private:
  void multiply(const PackedX& x) const;
  bool streams(const PackedX& x) const;
  void multiply_block(const PackedX& x, int64_t row, int64_t rows, int64_t column, int64_t columns,
                      const ThreadScratch& scratch) const;
  void add_streams(const PackedX& x, int64_t row, int64_t rows, int64_t column, int64_t columns,
                   const ThreadScratch& scratch) const;
  SpanScales stream_scales(const BlockSpan& span, int64_t column, int64_t columns, const ThreadScratch& scratch) const;
  void fetch_scales(int64_t column, int64_t columns) const;
  Ahead ahead_of(const Channels& channels, const BlockSpan& span, int64_t column, int64_t columns) const;
  void add_direct(const PackedX& x, int64_t column, int64_t columns, const ThreadScratch& scratch) const;
  BlockSpan next_span(int64_t first) const;
  void load_scales(const BlockSpan& span, int64_t column, int64_t columns, const ThreadScratch& scratch) const;
  void load_span(const BlockSpan& span, int64_t column, int64_t columns, const ThreadScratch& scratch) const;
  void add_f32(const PackedX& x, int64_t row, int64_t rows, int64_t column, int64_t columns,
               const ThreadScratch& scratch) const;
  Panel packed_panel(const BlockSpan& span, int64_t column, int64_t columns) const;
  void add_panels(const PackedX& x, int64_t row, int64_t rows, int64_t column, int64_t columns,
                  const ThreadScratch& scratch) const;
  void load_scales(int64_t block, int64_t slot, int64_t column, int64_t columns, const ThreadScratch& scratch) const;
  void multiply_panel(const PackedX& x, int64_t row, int64_t rows, int64_t block, int64_t slot, int64_t panel,
                      const Panel& codes, const Ahead& ahead, const ThreadScratch& scratch) const;
  void write_row(const PackedX& x, int64_t row, int64_t column, int64_t columns, float* c) const;

  const WeightQuantProblem& problem_;
  const WeightQuantPlan& plan_;
  const WeightQuantStorage& storage_;
  const GemmKernel& kernel_;
  const WeightSource& weight_;
  int64_t share_;
};

}  // namespace anynpu
