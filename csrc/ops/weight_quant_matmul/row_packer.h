// SPDX-License-Identifier: Apache-2.0
// Rows of x as the products read them.
#pragma once

#include "ops/weight_quant_matmul/storage.h"

namespace anynpu {

struct PackedX {
  Scheme scheme;
  int32_t digits;  // those of the plan, or two and rests in place of three
  const int32_t* data;
  int64_t first;  // row of x; of f32 the rows are those of row_of
  int64_t rows;
};

class RowPacker {
 public:
  RowPacker(const WeightQuantProblem& problem, const WeightQuantPlan& plan, const WeightQuantStorage& storage,
            const GemmKernel& kernel)
      : problem_(problem), plan_(plan), storage_(storage), kernel_(kernel) {}

  // Rows [first, first + count) in the scheme of the plan; sets wants_f32.
  PackedX pack(int64_t first, int64_t count) const;
  // The first `count` rows of row_of, in float32.
  PackedX pack_f32(int64_t count, int32_t* packed) const;

 private:
  void load_row(int64_t row, float* to) const;
  int64_t threads(int64_t rows) const;
  int64_t tile_rows(int32_t digits) const;
  void forget_rests(int64_t row, int64_t rows) const;
  void pack_rows(int64_t first, int64_t count, int32_t digits, bool with_rests) const;
  void pack_bytes(int64_t first, int64_t count) const;
  void pack_byte_row(const int8_t* from, int64_t stride, const PackedRow& row) const;

  const WeightQuantProblem& problem_;
  const WeightQuantPlan& plan_;
  const WeightQuantStorage& storage_;
  const GemmKernel& kernel_;
};

}  // namespace anynpu
