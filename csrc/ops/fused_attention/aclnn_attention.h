// SPDX-License-Identifier: Apache-2.0
// What the attention functions of all names have in common: the arguments of their newest versions, as calls of fused_attention.
#pragma once

#include <vector>

#include "acl/executor/executor.h"
#include "anynpu.h"

namespace anynpu::attention {

constexpr int64_t kAll = 2147483647;  // tokens: no limit

// Tensors are views with the axes of the flat ABI; the lengths of sequences are kept here.
struct Args : anynpu_fused_attention_args {
  anynpu_tensor all_scales, all_offsets;   // those of keys before those of values
  anynpu_tensor score_scale, value_scale;  // what follows the products of int8 queries, keys and values
  anynpu_tensor triangle;                  // a mask whose values follow from the sparse mode
  anynpu_tensor q_padding, kv_padding;     // one value: how many rows lie behind the sequences
  anynpu_tensor k_prefix, v_prefix;        // (1, tokens, N, D)
  int64_t prefix_count;                    // of these tokens
  std::vector<int64_t> q_values, kv_values;
};
int32_t check(const Args* args, size_t* workspace_bytes);
int32_t run(const Args* args, void* workspace, size_t workspace_bytes);

// Which columns rows see.
struct Visible {
  int64_t mode, before, after;
};

// The arguments of aclnnFusedInferAttentionScoreV3, those that older versions lack at the end.
struct FusedCall {
  const aclTensor* query;
  const aclTensorList *key, *value;
  const aclTensor *pse_shift, *mask;
  const aclIntArray *q_lengths, *kv_lengths;
  const aclTensor *deq_scale1, *quant_scale1, *deq_scale2, *quant_scale2, *quant_offset2, *scale, *offset, *block_table,
      *query_padding, *kv_padding;
  int64_t heads;
  double softmax_scale;
  Visible visible;
  const char* layout;
  int64_t kv_heads, block_size, mode;
  bool with_lse;
  const aclTensor *out, *lse;
  const aclTensor *key_scale = nullptr, *key_offset = nullptr, *value_scale = nullptr, *value_offset = nullptr,
                  *key_prefix = nullptr, *value_prefix = nullptr;
  const aclIntArray* prefix_lengths = nullptr;
  int64_t key_mode = 0, value_mode = 0;
  const aclTensor *query_rope = nullptr, *key_rope = nullptr, *key_rope_scale = nullptr;
};

// The arguments of aclnnIncreFlashAttentionV4, those that older versions lack at the end.
struct IncreCall {
  const aclTensor* query;
  const aclTensorList *key, *value;
  const aclTensor *pse_shift, *mask;
  const aclIntArray* lengths;
  int64_t heads;
  double softmax_scale;
  const char* layout;
  int64_t kv_heads;
  const aclTensor* out;
  const aclTensor *deq_scale1 = nullptr, *quant_scale1 = nullptr, *deq_scale2 = nullptr, *quant_scale2 = nullptr,
                  *quant_offset2 = nullptr;
  const aclTensor *scale = nullptr, *offset = nullptr, *block_table = nullptr;
  int64_t block_size = 0;
  const aclTensor* kv_padding = nullptr;
};

// The arguments of aclnnPromptFlashAttentionV3.
struct PromptCall {
  const aclTensor *query, *key, *value, *pse_shift, *mask;
  const aclIntArray *q_lengths, *kv_lengths;
  const aclTensor *deq_scale1, *quant_scale1, *deq_scale2, *quant_scale2, *quant_offset2;
  int64_t heads;
  double softmax_scale;
  Visible visible;
  const char* layout;
  int64_t kv_heads;
  const aclTensor* out;
};

// Their first stages.
aclnnStatus fused(const acl::Operator& op, const FusedCall& call, uint64_t* workspace_size, aclOpExecutor** executor);
aclnnStatus increment(const acl::Operator& op, const IncreCall& call, uint64_t* workspace_size,
                      aclOpExecutor** executor);
aclnnStatus prompt(const acl::Operator& op, const PromptCall& call, uint64_t* workspace_size, aclOpExecutor** executor);

}  // namespace anynpu::attention
