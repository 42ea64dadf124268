// SPDX-License-Identifier: Apache-2.0
// Of a call: what its shapes say, its checks, where its sequences lie, and places in its tensors.
#pragma once

#include <algorithm>

#include "core/tensor.h"

namespace anynpu {

using FusedArgs = anynpu_fused_attention_args;

inline int64_t batch_size(const FusedArgs& args) {
  return present(args.q_lengths) ? args.q_lengths.shape[0] : args.q.shape[0];
}
inline int64_t q_heads(const FusedArgs& args) { return args.q.shape[2]; }
inline int64_t kv_heads(const FusedArgs& args) { return args.k.shape[2]; }
inline bool is_paged(const FusedArgs& args) { return present(args.block_table); }
inline bool is_packed(const FusedArgs& args) { return args.packed != 0; }
inline bool has_codes(const FusedArgs& args) { return args.k.dtype == ANYNPU_INT8 || args.k.dtype == ANYNPU_INT4; }
inline bool has_integer_products(const FusedArgs& args) { return args.q.dtype == ANYNPU_INT8; }
inline int64_t rope_size(const FusedArgs& args) { return present(args.q_rope) ? args.q_rope.shape[3] : 0; }
// Rows that one sequence can have.
inline int64_t capacity(const FusedArgs& args) {
  return is_paged(args) ? args.block_table.shape[1] * args.k.shape[1] : args.k.shape[1];
}
// Of keys or values in codes: one for each token.
inline bool of_tokens(const anynpu_tensor& factors) {
  return present(factors) && (factors.shape[0] != 1 || factors.shape[1] != 1);
}

inline int32_t block_at(const FusedArgs& args, int64_t batch, int64_t block) {
  const int64_t* strides = args.block_table.strides;
  return static_cast<const int32_t*>(args.block_table.data)[batch * strides[0] + block * strides[1]];
}

// Where a sequence lies in q and out and, without a block table, in k and v.
struct FusedSequence {
  int64_t batch, q_plane, first_row, rows, kv_plane, first_column, columns;
  int64_t slots;        // rows of out that are its own: those from `rows` on become 0
  int64_t first_item;   // of work
  int64_t parts;        // items that share the columns or the queries of a head
  int64_t splits;       // of its columns, whose sums are joined in the end; 0: it is not split
  int64_t first_state;  // of its rows, each of which has one for every split
};

inline const void* element(const anynpu_tensor& tensor, int64_t offset) {
  return static_cast<const char*>(tensor.data) + offset * (dtype_bits(tensor.dtype) / 8);
}
inline void* element(anynpu_tensor& tensor, int64_t offset) {
  return static_cast<char*>(tensor.data) + offset * (dtype_bits(tensor.dtype) / 8);
}
inline int64_t offset_of(const anynpu_tensor& tensor, int64_t plane, int64_t row, int64_t head) {
  return plane * tensor.strides[0] + row * tensor.strides[1] + head * tensor.strides[2];
}

// Of a tensor that an axis of size 1 repeats.
inline int64_t step(const anynpu_tensor& tensor, int axis) {
  return tensor.shape[axis] == 1 ? 0 : tensor.strides[axis];
}
float factor_at(const anynpu_tensor& factors, int64_t offset);

// Where a row of keys and values lies.
struct FusedPlace {
  int64_t plane, row;
};
inline FusedPlace place_of(const FusedArgs& args, const FusedSequence& sequence, int64_t column) {
  if (!is_paged(args)) return {sequence.kv_plane, sequence.first_column + column};
  const int64_t block_size = args.k.shape[1];
  return {block_at(args, sequence.batch, column / block_size), column % block_size};
}

constexpr int64_t kEverywhere = int64_t{1} << 61;  // from a row to any column, and sums of such stay in range
// Limits of what a row sees.
inline int64_t limit(int64_t tokens) { return tokens >= INT32_MAX ? kEverywhere : std::max(tokens, -kEverywhere); }

// Keys and values of INT32 are the INT4 that they hold.
FusedArgs with_int4(const FusedArgs& args);
int32_t check_fused_attention(const FusedArgs& args);
// What row `row` of a sequence sees before the mask.
struct FusedColumns {
  int64_t first, last;
  int64_t count() const { return std::max<int64_t>(0, last - first); }
};
inline FusedColumns seen_columns(const FusedArgs& args, const FusedSequence& sequence, int64_t row) {
  const int64_t at = row + (args.from_end ? sequence.columns - sequence.rows : 0);
  return {std::max<int64_t>(0, at - limit(args.before)), std::min(sequence.columns, at + limit(args.after) + 1)};
}

// Of a row of one head, from `column` on: adds the bias to the scores, and makes those -infinity that the mask hides.
void add_bias(const FusedArgs& args, int64_t batch, int64_t head, int64_t row, int64_t column, int64_t count,
              float* scores);
void hide_masked(const FusedArgs& args, int64_t batch, int64_t head, int64_t row, int64_t column, int64_t count,
                 float* scores);
// The weight of the sink beside those of scores up to `maximum`.
float sunk_weight(const FusedArgs& args, int64_t head, float maximum);
// One row of a head of the result, sums / divisor, which overwrites the sums.
void store_row(const FusedArgs& args, float* sums, float divisor, int64_t head, void* to);

int32_t check_fused_data(const FusedArgs& args);
// Where sequence `batch` lies, all but its first item of work; refuses lengths and blocks outside of the tensors.
int32_t place_sequence(const FusedArgs& args, int64_t batch, FusedSequence* sequence);

}  // namespace anynpu
