// SPDX-License-Identifier: Apache-2.0
#include "ops/weight_quant_matmul/row_packer.h"

#include <algorithm>
#include <cstring>

#include "core/integer.h"
#include "ops/weight_quant_matmul/k_blocks.h"

namespace anynpu {
namespace {

constexpr int64_t kPackWork = 1 << 15;  // values of x a thread

bool fits_its_rests(const RestList& list) { return list.count <= list.most; }

}  // namespace

void RowPacker::load_row(int64_t row, float* to) const {
  if (problem_.k > 0) {  // otherwise the address and strides of x may be anything
    const anynpu_tensor& x = problem_.args->x;
    const uint8_t* from = static_cast<const uint8_t*>(x.data) + row_elements(x, row) * dtype_bits(x.dtype) / 8;
    kernel_.load_floats(from, x.dtype, x.strides[x.ndim - 1], problem_.k, to);
  }
  std::fill(to + problem_.k, to + round_up(problem_.k, 64) + 64, 0.0f);
}

int64_t RowPacker::threads(int64_t rows) const {
  return std::min(plan_.threads, std::max<int64_t>(1, rows * problem_.k / kPackWork));
}

// Two digits and rests where that may pay. In the digits scheme all rows of a call have as many digits; in words a row
// stands alone.
PackedX RowPacker::pack(int64_t first, int64_t count) const {
  if (problem_.has_int8_rows()) {
    pack_bytes(first, count);
    return {plan_.scheme, plan_.digits, storage_.packed, first, count};
  }
  const bool with_rests = plan_.most_rests > 0;
  const int32_t digits = with_rests ? 2 : plan_.digits;
  pack_rows(first, count, digits, with_rests);
  const RestList* rests = storage_.rest_lists;
  if (!with_rests || plan_.scheme == Scheme::words || std::all_of(rests, rests + count, fits_its_rests)) {
    return {plan_.scheme, digits, storage_.packed, first, count};
  }
  pack_rows(first, count, plan_.digits, false);
  return {plan_.scheme, plan_.digits, storage_.packed, first, count};
}

// Such a row is multiplied with its tile, for nothing.
void RowPacker::forget_rests(int64_t row, int64_t rows) const {
  for (int64_t block = 0; block < plan_.block_count; ++block) storage_.digit_blocks[block * rows + row].rest_count = 0;
}

int64_t RowPacker::tile_rows(int32_t digits) const {
  if (plan_.scheme == Scheme::words) return kernel_.word_tile_rows;
  if (plan_.scheme == Scheme::bf16) return kernel_.bf16.tile_rows;
  if (plan_.scheme == Scheme::pairs) return kernel_.pairs.tile_rows;
  return (plan_.stream || plan_.direct ? kStreamDigitRows : kTileDigitRows) / digits;
}

void RowPacker::pack_rows(int64_t first, int64_t count, int32_t digits, bool with_rests) const {
  const int64_t tile_rows = this->tile_rows(digits);
  parallel_slices(storage_, threads(count), count, [&](int64_t begin, int64_t end, const ThreadScratch& scratch) {
    for (int64_t row = begin; row < end; ++row) {
      load_row(first + row, scratch.row);
      const int64_t tile = row / tile_rows * tile_rows;
      RestList* rests = with_rests ? storage_.rest_lists + row : nullptr;
      if (with_rests) *rests = {storage_.rests + row * plan_.most_rests, plan_.most_rests, 0};
      const PackedRow packed = {
          storage_.packed, storage_.digit_blocks, count, tile, std::min(tile_rows, count - tile), row - tile, rests};
      const bool fits = plan_.scheme == Scheme::pairs
                            ? kernel_.pairs.pack(scratch.row, storage_.blocks, plan_.block_count, packed)
                        : plan_.scheme == Scheme::bf16
                            ? kernel_.bf16.pack(scratch.row, storage_.blocks, plan_.block_count, digits, packed)
                            : kernel_.pack_digits(scratch.row, storage_.blocks, plan_.block_count, digits,
                                                  problem_.panel_bias(), packed);
      storage_.wants_f32[row] = !fits || (with_rests && !fits_its_rests(*rests));
      if (storage_.wants_f32[row] && plan_.scheme != Scheme::bf16) forget_rests(row, count);
    }
  });
}

void RowPacker::pack_bytes(int64_t first, int64_t count) const {
  const anynpu_tensor& x = problem_.args->x;
  parallel_slices(storage_, threads(count), count, [&](int64_t begin, int64_t end, const ThreadScratch&) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t tile = row / plan_.tile_rows * plan_.tile_rows;
      storage_.wants_f32[row] = false;
      pack_byte_row(static_cast<const int8_t*>(x.data) + row_elements(x, first + row), x.strides[x.ndim - 1],
                    {storage_.packed, storage_.digit_blocks, count, tile, std::min(plan_.tile_rows, count - tile),
                     row - tile, nullptr});
    }
  });
}

// Four k to a word, with zeros behind the last block.
void RowPacker::pack_byte_row(const int8_t* from, int64_t stride, const PackedRow& row) const {
  for (int64_t block = 0; block < plan_.block_count; ++block) {
    const KBlock& k = storage_.blocks[block];
    int8_t gathered[kSpan];
    const int8_t* values = from + k.k * stride;
    if (stride != 1) {
      for (int64_t i = 0; i < k.count; ++i) gathered[i] = values[i * stride];
      values = gathered;
    }
    int32_t* to = row.packed + k.k / 4 * row.rows + ceil_divide(k.count, 4) * row.tile + row.row;
    int64_t i = 0;
    for (; i + 4 <= k.count; i += 4, to += row.tile_rows) std::memcpy(to, values + i, 4);
    if (i < k.count) {
      *to = 0;
      std::memcpy(to, values + i, static_cast<size_t>(k.count - i));
    }
    DigitBlock* info = row.info + block * row.rows + row.tile + row.row;
    if (kernel_.sum_bytes != nullptr) {
      kernel_.sum_bytes(values, k.count, problem_.panel_bias(), info);
      continue;
    }
    int32_t sum = 0;
    for (i = 0; i < k.count; ++i) sum += values[i];
    info->compensation[0] = -problem_.panel_bias() * sum;
  }
}

// The rows of a part are shared out evenly among its tiles: one of very few rows would cost as much as a whole one.
PackedX RowPacker::pack_f32(int64_t count, int32_t* packed) const {
  parallel_slices(storage_, threads(count), count, [&](int64_t begin, int64_t end, const ThreadScratch& scratch) {
    for (int64_t row = begin; row < end; ++row) {
      load_row(storage_.row_of[row], scratch.row);
      const int64_t part = row / part_rows(plan_, count) * part_rows(plan_, count);
      const int64_t rows = std::min(part_rows(plan_, count), count - part),
                    tiles = ceil_divide(rows, kernel_.f32_tile_rows);
      const int64_t index = ((row - part + 1) * tiles - 1) / rows, tile = part + rows * index / tiles;
      const int64_t tile_rows = part + rows * (index + 1) / tiles - tile;
      for (BlockSpan span = span_from(storage_.blocks, plan_.block_count, 0); span.count > 0;
           span = span_from(storage_.blocks, plan_.block_count, span.last)) {
        float* to = reinterpret_cast<float*>(packed) + span.k * count + span.count * tile + (row - tile);
        for (int64_t i = 0; i < span.count; ++i) to[i * tile_rows] = scratch.row[span.k + i];
      }
    }
  });
  return {Scheme::f32, 1, packed, 0, count};
}

}  // namespace anynpu
