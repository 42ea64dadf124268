// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "core/strided.h"
#include "ops/kv_cache_attention/kv_cache_attention.h"

namespace anynpu {
namespace {

constexpr const char* kOp = "kv_cache_attention";
constexpr int64_t kMost = 1 << 16;        // heads, and values of one
constexpr double kMostProducts = 0x1p54;  // so that no size overflows
using Args = KvCacheArgs;

int32_t check_heads(const char* name, const anynpu_tensor& tensor) {
  if (tensor.shape[3] <= 1 || tensor.strides[3] == 1) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE, "%s: the last axis of %s should be contiguous", kOp, name);
}

int32_t check_caches(const Args& args) {
  ANYNPU_TRY(check_view(kOp, "k_cache", args.k_cache, {ANYNPU_INT8}));
  ANYNPU_TRY(check_view(kOp, "v_cache", args.v_cache, {ANYNPU_INT8}));
  if (args.k_cache.ndim != 4 || kv_heads(args) < 1 || args.k_cache.shape[3] < 1) {
    return fail(ANYNPU_BAD_SHAPE, "%s: k_cache must be [C1, C2, Nkv, D], got shape %s", kOp, shape_text(args.k_cache));
  }
  if (!same_shape(args.k_cache, args.v_cache)) {
    return fail(ANYNPU_BAD_SHAPE, "%s: v_cache must have the shape of k_cache, %s, got %s", kOp,
                shape_text(args.k_cache), shape_text(args.v_cache));
  }
  ANYNPU_TRY(check_heads("k_cache", args.k_cache));
  if (same_strides(args.k_cache, args.v_cache)) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE, "%s: v_cache must have the strides of k_cache", kOp);
}

int32_t check_q(const Args& args) {
  ANYNPU_TRY(check_view(kOp, "q", args.q, {ANYNPU_FLOAT16, ANYNPU_BFLOAT16, ANYNPU_FLOAT32}));
  if (args.q.ndim != 4)
    return fail(ANYNPU_BAD_SHAPE, "%s: q must be [B, S, Nq, D], got shape %s", kOp, shape_text(args.q));
  if (head_size(args) != args.k_cache.shape[3]) {
    return fail(ANYNPU_BAD_SHAPE, "%s: q.shape[3] must be D = k_cache.shape[3] = %lld, got %lld", kOp,
                wide(args.k_cache.shape[3]), wide(head_size(args)));
  }
  if (q_heads(args) < 1 || q_heads(args) % kv_heads(args) != 0) {
    return fail(ANYNPU_BAD_SHAPE, "%s: q.shape[2] must be a multiple of Nkv = k_cache.shape[2] = %lld, got %lld", kOp,
                wide(kv_heads(args)), wide(q_heads(args)));
  }
  return ANYNPU_OK;
}

int32_t check_per_batch(const Args& args, const char* name, const anynpu_tensor& tensor) {
  ANYNPU_TRY(check_view(kOp, name, tensor, {ANYNPU_INT32}));
  if (has_shape(tensor, {batch_size(args)})) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE, "%s: %s must have shape [B] = (%lld,), got %s", kOp, name, wide(batch_size(args)),
              shape_text(tensor));
}

int32_t check_places(const Args& args) {
  ANYNPU_TRY(check_per_batch(args, "lengths", args.lengths));
  if (present(args.starts)) ANYNPU_TRY(check_per_batch(args, "starts", args.starts));
  if (!is_paged(args)) {
    if (args.k_cache.shape[0] >= batch_size(args)) return ANYNPU_OK;
    return fail(ANYNPU_BAD_SHAPE, "%s: k_cache.shape[0] must be at least B = %lld, got %lld", kOp,
                wide(batch_size(args)), wide(args.k_cache.shape[0]));
  }
  ANYNPU_TRY(check_view(kOp, "block_table", args.block_table, {ANYNPU_INT32}));
  if (args.block_table.ndim == 2 && args.block_table.shape[0] == batch_size(args)) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE, "%s: block_table must be [B, blocks] with B = %lld, got shape %s", kOp,
              wide(batch_size(args)), shape_text(args.block_table));
}

int32_t check_head_parameter(const Args& args, const char* name, const anynpu_tensor& tensor) {
  ANYNPU_TRY(check_view(kOp, name, tensor, {ANYNPU_FLOAT32}));
  if (has_shape(tensor, {kv_heads(args), head_size(args)})) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE, "%s: %s must have shape [Nkv, D] = (%lld, %lld), got %s", kOp, name,
              wide(kv_heads(args)), wide(head_size(args)), shape_text(tensor));
}

int32_t check_out(const Args& args) {
  ANYNPU_TRY(check_view(kOp, "out", args.out, {args.q.dtype}));
  if (!same_shape(args.q, args.out)) {
    return fail(ANYNPU_BAD_SHAPE, "%s: out must have the shape of q, %s, got %s", kOp, shape_text(args.q),
                shape_text(args.out));
  }
  ANYNPU_TRY(check_strides(kOp, "out", args.out, Access::write));
  return check_heads("out", args.out);
}

// Of rows that q may see.
int32_t check_size(const Args& args) {
  if (q_heads(args) > kMost || head_size(args) > kMost) {
    return fail(ANYNPU_BAD_SHAPE, "%s: q must have at most %lld heads of at most as many values, got shape %s", kOp,
                wide(kMost), shape_text(args.q));
  }
  const double blocks = is_paged(args) ? static_cast<double>(args.block_table.shape[1]) : 1.0;
  const double rows = blocks * static_cast<double>(args.k_cache.shape[1]);
  if (rows * static_cast<double>(std::max<int64_t>(1, element_count(args.q))) <= kMostProducts) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE, "%s: q of shape %s is too large for sequences of up to %.0f rows", kOp,
              shape_text(args.q), rows);
}

int32_t check_all_data(const Args& args) {
  const struct {
    const char* name;
    const anynpu_tensor* tensor;
  } tensors[] = {{"q", &args.q},
                 {"k_cache", &args.k_cache},
                 {"v_cache", &args.v_cache},
                 {"lengths", &args.lengths},
                 {"scale_k", &args.scale_k},
                 {"scale_v", &args.scale_v},
                 {"offset_k", &args.offset_k},
                 {"offset_v", &args.offset_v},
                 {"block_table", &args.block_table},
                 {"starts", &args.starts},
                 {"out", &args.out}};
  for (const auto& entry : tensors) ANYNPU_TRY(check_data(kOp, entry.name, *entry.tensor));
  return ANYNPU_OK;
}

int32_t check_values(const Args& args, int64_t* longest) {
  const int64_t least = args.causal ? query_length(args) : 1;
  *longest = 0;
  for (int64_t batch = 0; batch < batch_size(args); ++batch) {
    const int64_t length = length_of(args, batch), start = start_of(args, batch);
    if (length < least || length > capacity(args)) {
      return fail(ANYNPU_BAD_VALUE,
                  "%s: lengths must be in [%lld, %lld], from %s to the rows of the cache, got %lld at [%lld]", kOp,
                  wide(least), wide(capacity(args)), args.causal ? "S" : "1", wide(length), wide(batch));
    }
    if (start < 0 || start > length) {
      return fail(ANYNPU_BAD_VALUE, "%s: starts must be in [0, lengths] = [0, %lld], got %lld at [%lld]", kOp,
                  wide(length), wide(start), wide(batch));
    }
    *longest = std::max(*longest, length);
    if (!is_paged(args) || length == 0) continue;
    const int64_t size = args.k_cache.shape[1];
    for (int64_t block = start / size; block * size < length; ++block) {
      const int64_t index = int_at(args.block_table, batch, block);
      if (index < 0 || index >= args.k_cache.shape[0]) {
        return fail(ANYNPU_BAD_VALUE,
                    "%s: block_table must be in [0, C1) = [0, %lld) where rows are used, got %lld at [%lld, %lld]", kOp,
                    wide(args.k_cache.shape[0]), wide(index), wide(batch), wide(block));
      }
    }
  }
  return ANYNPU_OK;
}

}  // namespace

int32_t check_kv_cache_attention(const Args& args) {
  ANYNPU_TRY(check_caches(args));
  ANYNPU_TRY(check_q(args));
  ANYNPU_TRY(check_places(args));
  ANYNPU_TRY(check_head_parameter(args, "scale_k", args.scale_k));
  ANYNPU_TRY(check_head_parameter(args, "scale_v", args.scale_v));
  if (present(args.offset_k)) ANYNPU_TRY(check_head_parameter(args, "offset_k", args.offset_k));
  if (present(args.offset_v)) ANYNPU_TRY(check_head_parameter(args, "offset_v", args.offset_v));
  ANYNPU_TRY(check_size(args));
  return check_out(args);
}

int32_t check_kv_cache_data(const Args& args, int64_t* longest) {
  ANYNPU_TRY(check_all_data(args));
  return check_values(args, longest);
}

}  // namespace anynpu
