// SPDX-License-Identifier: Apache-2.0
// The products of experts with few rows, made straight from int8 weights as they lie, in one pass over each.
#pragma once

#include "ops/grouped_matmul_combine/packed_rows.h"

namespace anynpu {

class DirectSums {
 public:
  // `rows` in all, of `experts` that have some; of one at most `most_each`.
  DirectSums(const CombineProblem& problem, int64_t most_each, int64_t rows, int64_t experts);
  int64_t bytes() const { return parts_ * most_rows_ * stride_ * 4; }
  void use(void* memory) { sums_ = static_cast<int32_t*>(memory); }

  // The place of the rows of the next piece, or -1.
  int64_t take(int64_t rows);
  void give_back() { taken_ = 0; }
  void multiply(const Piece* pieces, int64_t count, const PackedRows& packed) const;
  // sums += those of columns [column, column + columns) of a row of a piece.
  void add(const Piece& piece, int64_t row, int64_t column, int64_t columns, int32_t* sums) const;

 private:
  int32_t* sums_of(int64_t part, int64_t row) const { return sums_ + (part * most_rows_ + row) * stride_; }
  void multiply_part(const Piece& piece, int64_t part, const PackedRows& packed) const;

  const CombineProblem& problem_;
  const int64_t most_each_;  // rows of a piece
  const bool by_k_;          // whole rows of k one after the other are what the memory likes best
  const int64_t stride_;     // of a row of sums
  const int64_t most_rows_;
  const int64_t threads_;
  const int64_t part_k_;
  const int64_t parts_;  // of k, which have sums of their own
  int64_t taken_ = 0;
  int32_t* sums_ = nullptr;
};

}  // namespace anynpu
