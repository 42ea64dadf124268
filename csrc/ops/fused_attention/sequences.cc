// SPDX-License-Identifier: Apache-2.0
#include "ops/fused_attention/fused_attention.h"

namespace anynpu {
namespace {

constexpr const char* kOp = "fused_attention";
using Args = FusedArgs;
using Sequence = FusedSequence;

int64_t length_at(const anynpu_tensor& lengths, int64_t index) {
  return static_cast<const int64_t*>(lengths.data)[index];
}

// Cuts the rows [0, total) that sequences share, or plane `batch`, by a list of ends or lengths.
int32_t cut(const char* name, const anynpu_tensor& lengths, bool packed, int64_t batch, int64_t total, int64_t* first,
            int64_t* count) {
  *first = packed && batch > 0 ? length_at(lengths, batch - 1) : 0;
  const int64_t end = present(lengths) ? length_at(lengths, batch) : total;
  if (end < *first || end > total || (packed && batch == lengths.shape[0] - 1 && end != total)) {
    return fail(ANYNPU_BAD_VALUE, "%s: %s must be in [%lld, %lld]%s, got %lld at [%lld]", kOp, name, wide(*first),
                wide(total), packed ? ", running sums that end with the last" : "", wide(end), wide(batch));
  }
  *count = end - *first;
  return ANYNPU_OK;
}

int32_t check_blocks(const Args& args, const Sequence& sequence) {
  for (int64_t block = 0; block * args.k.shape[1] < sequence.columns; ++block) {
    const int64_t index = block_at(args, sequence.batch, block);
    if (index >= 0 && index < args.k.shape[0]) continue;
    return fail(ANYNPU_BAD_VALUE, "%s: block_table must be in [0, %lld) where rows are used, got %lld at [%lld, %lld]",
                kOp, wide(args.k.shape[0]), wide(index), wide(sequence.batch), wide(block));
  }
  return ANYNPU_OK;
}

// Of a mask or bias.
int32_t check_sides(const char* name, const anynpu_tensor& plane, const Sequence& sequence) {
  if (!present(plane) || (plane.shape[2] >= sequence.rows && plane.shape[3] >= sequence.columns)) return ANYNPU_OK;
  return fail(ANYNPU_BAD_VALUE, "%s: %s must have at least %lld rows and %lld columns, got shape %s", kOp, name,
              wide(sequence.rows), wide(sequence.columns), shape_text(plane));
}

}  // namespace

int32_t place_sequence(const FusedArgs& args, int64_t batch, FusedSequence* sequence) {
  const bool packed = is_packed(args);
  sequence->batch = batch;
  sequence->q_plane = packed ? 0 : batch;
  ANYNPU_TRY(cut("q_lengths", args.q_lengths, packed, batch, args.q.shape[1], &sequence->first_row, &sequence->rows));
  sequence->slots = packed ? sequence->rows : args.q.shape[1];
  const bool packed_kv = packed && !is_paged(args);
  sequence->kv_plane = packed ? 0 : batch;
  ANYNPU_TRY(cut("kv_lengths", args.kv_lengths, packed_kv, batch, capacity(args), &sequence->first_column,
                 &sequence->columns));
  if (is_paged(args)) ANYNPU_TRY(check_blocks(args, *sequence));
  ANYNPU_TRY(check_sides("mask", args.mask, *sequence));
  return check_sides("bias", args.bias, *sequence);
}

}  // namespace anynpu
