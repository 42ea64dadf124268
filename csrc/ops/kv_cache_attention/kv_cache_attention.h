// SPDX-License-Identifier: Apache-2.0
// Of a call: what its shapes say, and its checks.
#pragma once

#include "core/tensor.h"

namespace anynpu {

using KvCacheArgs = anynpu_kv_cache_attention_args;

inline int64_t batch_size(const KvCacheArgs& args) { return args.q.shape[0]; }
inline int64_t query_length(const KvCacheArgs& args) { return args.q.shape[1]; }
inline int64_t q_heads(const KvCacheArgs& args) { return args.q.shape[2]; }
inline int64_t head_size(const KvCacheArgs& args) { return args.q.shape[3]; }
inline int64_t kv_heads(const KvCacheArgs& args) { return args.k_cache.shape[2]; }
inline bool is_paged(const KvCacheArgs& args) { return present(args.block_table); }
// Rows that one sequence can have.
inline int64_t capacity(const KvCacheArgs& args) {
  return is_paged(args) ? args.block_table.shape[1] * args.k_cache.shape[1] : args.k_cache.shape[1];
}

inline int32_t int_at(const anynpu_tensor& tensor, int64_t row, int64_t column = 0) {
  const int64_t offset = row * tensor.strides[0] + (tensor.ndim == 2 ? column * tensor.strides[1] : 0);
  return static_cast<const int32_t*>(tensor.data)[offset];
}

// Rows [start, length) of the cache belong to sequence `batch`.
inline int64_t length_of(const KvCacheArgs& args, int64_t batch) { return int_at(args.lengths, batch); }
inline int64_t start_of(const KvCacheArgs& args, int64_t batch) {
  return present(args.starts) ? int_at(args.starts, batch) : 0;
}

int32_t check_kv_cache_attention(const KvCacheArgs& args);
// What depends on data: there is some, and lengths, starts and the block table lie within the cache. Tells the largest length.
int32_t check_kv_cache_data(const KvCacheArgs& args, int64_t* longest);

}  // namespace anynpu
