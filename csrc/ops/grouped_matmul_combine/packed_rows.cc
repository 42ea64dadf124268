// SPDX-License-Identifier: Apache-2.0
#include "ops/grouped_matmul_combine/packed_rows.h"

#include <algorithm>
#include <cstring>

#include "core/integer.h"
#include "ops/quant_matmul/int8_kernel.h"

namespace anynpu {
namespace {

constexpr int64_t kPartK = 32;  // parts of a weight begin at multiples of this

// Where the words of a row go: those of a unit beside each other, the units of `height` rows one after the other within a
// block of steps, of which `left` are left, and the blocks block_words apart.
struct RowWords {
  int32_t* at;
  int64_t height;
  int64_t unit;
  int64_t left;
  int64_t block_steps;
  int64_t block_words;
  int64_t left_of_unit = unit;

  void put(const int8_t* values) {
    std::memcpy(at++, values, 4);
    if (--left_of_unit > 0) return;
    left_of_unit = unit;
    at += (height - 1) * unit;
    left -= unit;
    if (left > 0) return;
    at += block_words - block_steps * height;
    left = block_steps;
  }
};

// The same where words follow words: of neighbouring values, or of a single one.
int32_t pack_words(const int8_t* from, int64_t stride, int64_t words, const RowWords& to) {
  if (stride == 0) {
    int32_t word;
    std::memset(&word, *from, 4);
    for (int64_t i = 0; i < words; ++i) to.at[i * to.height] = word;
    return static_cast<int32_t>(4 * words * *from);
  }
  for (int64_t i = 0; i < words; ++i) std::memcpy(to.at + i * to.height, from + 4 * i, 4);
  int32_t sum = 0;
  for (int64_t i = 0; i < 4 * words; ++i) sum += from[i];
  return sum;
}

// The k of a group, four to a word; returns their sum.
int32_t pack_group(const int8_t* from, int64_t stride, const ScaleGroup& group, RowWords to) {
  const int64_t values = group.end - group.begin;
  if ((stride == 0 || stride == 1) && group.first_k == group.begin && values % 4 == 0 && to.unit == 1 &&
      4 * to.left >= values) {
    return pack_words(from + stride * group.begin, stride, values / 4, to);
  }
  int32_t sum = 0;
  for (int64_t k = group.first_k; k < group.end; k += 4) {
    int8_t values[4] = {};
    if (stride == 1 && k >= group.begin && k + 4 <= group.end) {
      std::memcpy(values, from + k, 4);
    } else {
      const int64_t first = std::max<int64_t>(0, group.begin - k), last = std::min<int64_t>(4, group.end - k);
      for (int64_t i = first; i < last; ++i) values[i] = from[(k + i) * stride];
    }
    to.put(values);
    sum += values[0] + values[1] + values[2] + values[3];
  }
  return sum;
}

}  // namespace

PackedRows::PackedRows(const CombineProblem& problem, const RowTiles& tiles, int64_t groups, bool ones)
    : problem_(problem), tiles_(tiles), groups_(groups), ones_(ones) {
  const ScaleGroup last = group(groups - 1);
  row_steps_ = round_up(last.first_step + last.steps(), tiles.unit_steps);
  if (!problem.int4()) row_steps_ = round_up(row_steps_, kDirectK / 4);
  block_steps_ = tiles.block_steps == 0 ? row_steps_ : tiles.block_steps;
}

ScaleGroup PackedRows::group(int64_t index) const {
  const int64_t size = problem_.k / groups_, begin = index * size;
  const int64_t most_steps = size % kPartK == 0 ? size / 4 : (size + kPartK + 2) / 4;
  return {begin, begin + size, begin / kPartK * kPartK, index * round_up(most_steps, tiles_.unit_steps)};
}

int64_t PackedRows::bytes(int64_t rows) const { return rows * (row_steps_ + groups_ + 1) * 4; }

void PackedRows::use(void* memory, int64_t rows) {
  packed_ = static_cast<int32_t*>(memory);
  of_rows_ = packed_ + rows * row_steps_;
  row_sums_ = of_rows_ + rows * groups_;
}

int64_t PackedRows::tile_rows(const Piece& piece) const {
  if (piece.direct >= 0) return 1;
  return tiles_.even ? ceil_divide(rows(piece), ceil_divide(rows(piece), tiles_.rows)) : tiles_.rows;
}

void PackedRows::pack(const Piece& piece) {
  for (int64_t row = 0; row < rows(piece); ++row) pack_row(piece, row);
}

// With q the stored nibble or byte, w = q - bias: sum x * q - bias * sum x is sum x * w. With int4 weights 8 * sum w
// goes too, of which 8 * sum q comes from the row of ones.
void PackedRows::pack_row(const Piece& piece, int64_t row) {
  static constexpr int8_t kOne = 1;
  const anynpu_tensor& x = problem_.args->x;
  const bool ones = row == piece.rows, direct = piece.direct >= 0;
  const int8_t* from = ones ? &kOne : static_cast<const int8_t*>(x.data) + (piece.row + row) * x.strides[0];
  const int64_t tile_rows = this->tile_rows(piece);
  const int64_t tile = row / tile_rows * tile_rows, height = std::min(tile_rows, rows(piece) - tile);
  const int64_t block_words = block_steps_ * rows(piece);
  int32_t* first = packed_ + piece.packed * row_steps_ + tile * block_steps_ + (row - tile) * tiles_.unit_steps;
  int32_t total = 0;
  for (int64_t index = 0; index < groups_; ++index) {
    const ScaleGroup k = group(index);
    const int64_t block = k.first_step / block_steps_, step = k.first_step % block_steps_;
    const RowWords to = {first + block * block_words + step * height,
                         height,
                         tiles_.unit_steps,
                         block_steps_ - step,
                         block_steps_,
                         block_words};
    const int32_t sum = pack_group(from, ones ? 0 : x.strides[1], k, to);
    const int32_t correction = problem_.int4() ? 8 * sum - 64 * static_cast<int32_t>(k.end - k.begin) : 128 * sum;
    of_rows_[group_rows(piece, index) + row] = direct || ones ? 0 : correction;
    total += sum;
  }
  if (direct) std::fill(first + ceil_divide(problem_.k, 4), first + row_steps_, 0);
  row_sums_[piece.packed + row] = total;
}

}  // namespace anynpu
