// SPDX-License-Identifier: Apache-2.0
// The rows of x as the products read them.
#pragma once

#include "ops/grouped_matmul_combine/grouped_matmul_combine.h"

namespace anynpu {

// Rows [row, row + rows) of x, all of one expert, from packed row `packed` on. With int4 weights a last row of ones,
// whose products are the sums of the columns of the weight. Few rows may have their products made straight from the
// weight: then they lie one behind the other, with zeros up to a multiple of kDirectK, and `direct` is their first row
// among all of those, or else -1.
struct Piece {
  int64_t expert;
  int64_t row;
  int64_t rows;
  int64_t packed;
  int64_t direct;
  bool long_sums;  // of Int4Product
};

// The k that share a scale, and where their packed steps of four k begin. Parts of a weight begin at multiples of 32,
// so the steps begin there, with zeros of x where k belong to the group before.
struct ScaleGroup {
  int64_t begin, end;
  int64_t first_k;
  int64_t first_step;
  int64_t steps() const { return (end - first_k + 3) / 4; }
};

// How the rows of a tile lie: [steps / unit_steps][rows of the tile][unit_steps] of four k, within blocks of block_steps
// steps, or a single block where that is 0.
struct RowTiles {
  int64_t rows;
  int64_t unit_steps;
  int64_t block_steps;
  bool even = false;  // tiles as high as each other, if a lower one would be needed
};

class PackedRows {
 public:
  // Each of `groups` of k has sums of its own. With `ones`, a piece gets a last row of ones, whose products are the sums
  // of the columns of the weight.
  PackedRows(const CombineProblem& problem, const RowTiles& tiles, int64_t groups, bool ones);
  // What `rows` packed rows take.
  int64_t bytes(int64_t rows) const;
  void use(void* memory, int64_t rows);
  void pack(const Piece& piece);

  ScaleGroup group(int64_t index) const;
  int64_t rows(const Piece& piece) const { return piece.rows + (ones_ ? 1 : 0); }
  int64_t row_steps() const { return row_steps_; }
  int64_t tile_rows(const Piece& piece) const;
  // The first tile of a piece, in the form of Int8Product.
  const int32_t* tiles(const Piece& piece) const { return packed_ + piece.packed * row_steps_; }
  // Of each row: what is subtracted from its sums over a group, and its sum over all k.
  const int32_t* of_rows(const Piece& piece, int64_t group) const { return of_rows_ + group_rows(piece, group); }
  const int32_t* row_sums(const Piece& piece) const { return row_sums_ + piece.packed; }

 private:
  int64_t group_rows(const Piece& piece, int64_t group) const { return piece.packed * groups_ + group * rows(piece); }
  void pack_row(const Piece& piece, int64_t row);

  const CombineProblem& problem_;
  const RowTiles tiles_;
  const int64_t groups_;
  int64_t block_steps_;
  const bool ones_;
  int64_t row_steps_;
  int32_t* packed_ = nullptr;
  int32_t* of_rows_ = nullptr;
  int32_t* row_sums_ = nullptr;
};

}  // namespace anynpu
