// SPDX-License-Identifier: Apache-2.0
#include "ops/fused_attention/kv_rows.h"

#include <algorithm>

namespace anynpu {
namespace {

void load_factors(const anynpu_tensor& factors, int64_t head, float otherwise, int64_t count, float* to) {
  if (!present(factors) || of_tokens(factors)) {
    std::fill_n(to, count, otherwise);
    return;
  }
  for (int64_t i = 0; i < count; ++i) to[i] = factor_at(factors, head * step(factors, 2) + i * step(factors, 3));
}

void unpack_int4(const char* from, int64_t count, int8_t* to) {
  for (int64_t i = 0; i + 1 < count; i += 2) {
    const auto pair = static_cast<uint8_t>(from[i / 2]);
    to[i] = static_cast<int8_t>(((pair & 15) ^ 8) - 8);
    to[i + 1] = static_cast<int8_t>((pair >> 4 ^ 8) - 8);
  }
  if (count % 2 != 0) to[count - 1] = static_cast<int8_t>(((from[count / 2] & 15) ^ 8) - 8);
}

void pad(float* row, int64_t count, int64_t padded) { std::fill(row + count, row + padded, 0.0f); }

void repeat_last(FusedRows* rows, int64_t count) {
  std::fill(rows->at + count, rows->at + kFusedRows, rows->at[count - 1]);
}

}  // namespace

KvRows::View::View(const anynpu_tensor& tensor) : data(static_cast<const char*>(tensor.data)) {
  const int64_t bits = dtype_bits(tensor.dtype);
  plane = tensor.strides[0] * bits / 8;
  row = tensor.strides[1] * bits / 8;
  head = tensor.strides[2] * bits / 8;
  size = tensor.shape[3] * bits / 8;
}

KvRows::KvRows(const FusedArgs& args, const FusedKernel& kernel, const KvScratch& scratch,
               const FusedSequence& sequence, int64_t first_head, int64_t heads, bool in_place)
    : args_(args),
      kernel_(kernel),
      scratch_(scratch),
      sequence_(sequence),
      first_head_(first_head),
      heads_(heads),
      in_place_(in_place),
      k_(args.k),
      v_(args.v) {
  if (has_codes(args_)) load_channels(first_head_);
}

bool KvRows::takes_in_place(const FusedArgs& args) {
  return !has_codes(args) && rope_size(args) == 0 && args.k.shape[3] % kFusedPadding == 0 &&
         args.v.shape[3] % kFusedPadding == 0;
}

void KvRows::go_to(int64_t column, int64_t count, int64_t next_count) {
  count_ = count;
  for (int64_t i = 0; i < count; ++i) places_[i] = place(column + i);
  next_column_ = column + count;
  next_end_ = next_column_ + next_count;
  next_head_ = 0;
  if (next_count > 0) next_place_ = place(next_column_);
}

void KvRows::look_ahead(FusedTile* tile) {
  int32_t rows = 0;
  for (; rows < count_ && next_column_ < next_end_; ++rows) {
    tile->k_ahead.at[rows] = k_.at(next_place_, first_head_ + next_head_);
    tile->v_ahead.at[rows] = v_.at(next_place_, first_head_ + next_head_);
    if (++next_head_ < heads_) continue;
    next_head_ = 0;
    if (++next_column_ < next_end_) next_place_ = place(next_column_);
  }
  tile->k_ahead.rows = tile->v_ahead.rows = rows;
  tile->k_ahead.bytes = k_.size;
  tile->v_ahead.bytes = v_.size;
}

void KvRows::load(int64_t head, FusedTile* tile) {
  look_ahead(tile);
  tile->rows = static_cast<int32_t>(count_);
  tile->k.dtype = in_place_ ? args_.k.dtype : ANYNPU_FLOAT32;
  tile->v.dtype = in_place_ ? args_.v.dtype : ANYNPU_FLOAT32;
  for (int64_t i = 0; i < count_; ++i) {
    float *k = scratch_.k + i * tile->key_size, *v = scratch_.v + i * tile->value_size;
    if (!in_place_) load_row(places_[i], head, *tile, k, v);
    tile->k.at[i] = in_place_ ? static_cast<const void*>(k_.at(places_[i], head)) : k;
    tile->v.at[i] = in_place_ ? static_cast<const void*>(v_.at(places_[i], head)) : v;
  }
  repeat_last(&tile->k, count_);
  repeat_last(&tile->v, count_);
}

void KvRows::load_row(Place from, int64_t head, const FusedTile& tile, float* k, float* v) const {
  const int64_t k_count = args_.k.shape[3], v_count = args_.v.shape[3];
  const char *k_row = k_.at(from, head), *v_row = v_.at(from, head);
  if (has_codes(args_)) {
    dequantise(k_row, args_.k_scale, args_.k_offset, {scratch_.k_scale, scratch_.k_offset, 1, 0}, from, head, k_count,
               k);
    dequantise(v_row, args_.v_scale, args_.v_offset, {scratch_.v_scale, scratch_.v_offset, 1, 0}, from, head, v_count,
               v);
  } else {
    kernel_.widen(args_.k.dtype, k_row, k_count, k);
    kernel_.widen(args_.v.dtype, v_row, v_count, v);
  }
  if (present(args_.k_rope)) {
    const void* rope = element(args_.k_rope, offset_of(args_.k_rope, from.plane, from.row, head));
    kernel_.widen(args_.k_rope.dtype, rope, rope_size(args_), k + k_count);
  }
  pad(k, k_count + rope_size(args_), tile.key_size);
  pad(v, v_count, tile.value_size);
}

void KvRows::dequantise(const char* row, const anynpu_tensor& scale, const anynpu_tensor& offset, FusedCodes factors,
                        Place place, int64_t head, int64_t count, float* to) const {
  const auto of_row = [&](const anynpu_tensor& tensor, float otherwise) {
    if (!of_tokens(tensor)) return otherwise;
    return factor_at(tensor, place.plane * step(tensor, 0) + place.row * step(tensor, 1) + head * step(tensor, 2));
  };
  factors.row_scale = of_row(scale, 1);
  factors.row_offset = of_row(offset, 0);
  const auto* codes = reinterpret_cast<const int8_t*>(row);
  if (args_.k.dtype == ANYNPU_INT4) {
    unpack_int4(row, count, scratch_.codes);
    codes = scratch_.codes;
  }
  kernel_.dequantise(codes, factors, count, to);
}

// The factors that do not depend on the token.
void KvRows::load_channels(int64_t head) const {
  load_factors(args_.k_scale, head, 1, args_.k.shape[3], scratch_.k_scale);
  load_factors(args_.k_offset, head, 0, args_.k.shape[3], scratch_.k_offset);
  load_factors(args_.v_scale, head, 1, args_.v.shape[3], scratch_.v_scale);
  load_factors(args_.v_offset, head, 0, args_.v.shape[3], scratch_.v_offset);
}

}  // namespace anynpu
