// SPDX-License-Identifier: Apache-2.0
// Older and smaller operators around the experts of tokens: they sort by the kernel of moe_init_routing and add rows up by that
// of moe_finalize_routing.
#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "acl/executor/executor.h"
#include "aclnnop/aclnn_moe_compute_expert_tokens.h"
#include "aclnnop/aclnn_moe_init_routing.h"
#include "aclnnop/aclnn_moe_token_permute.h"
#include "aclnnop/aclnn_moe_token_unpermute.h"
#include "core/status.h"
#include "core/tensor.h"

namespace {

using anynpu::fail;
using anynpu::wide;
using anynpu::acl::FirstStage;
using anynpu::acl::Views;

struct Routing {
  anynpu_tensor x, row_idx, expert_idx, expanded_x, expanded_row_idx, expanded_expert_idx;
  int64_t active_tokens;
};
struct Permutation {
  anynpu_tensor tokens, indices, permuted, sorted_indices;
  int64_t rows;  // as the program says it: from the end where it is not positive
};
struct Sum {
  anynpu_tensor permuted, sorted_indices, probs, out;
};
struct Count {
  anynpu_tensor experts, out;
};

anynpu_tensor tensor_of(int32_t dtype, void* data, std::initializer_list<int64_t> shape) {
  anynpu_tensor made = {};
  made.data = data;
  made.dtype = dtype;
  made.format = ANYNPU_ND;
  made.ndim = static_cast<int32_t>(shape.size());
  std::copy(shape.begin(), shape.end(), made.shape);
  anynpu::make_contiguous(made);
  return made;
}

int64_t value_at(const anynpu_tensor& tensor, int64_t i) {
  return tensor.dtype == ANYNPU_INT64 ? static_cast<const int64_t*>(tensor.data)[i]
                                      : static_cast<const int32_t*>(tensor.data)[i];
}

// Keys of any value as experts, numbered in the order of the keys.
class Experts {
 public:
  explicit Experts(const anynpu_tensor& keys) : count_(anynpu::element_count(keys)), numbers_(new int32_t[count_]) {
    for (int64_t i = 0; i < count_; ++i) values_.push_back(value_at(keys, i));
    std::sort(values_.begin(), values_.end());
    values_.erase(std::unique(values_.begin(), values_.end()), values_.end());
    for (int64_t i = 0; i < count_; ++i) {
      const auto place = std::lower_bound(values_.begin(), values_.end(), value_at(keys, i));
      numbers_[i] = static_cast<int32_t>(place - values_.begin());
    }
  }
  int64_t count() const { return std::max<int64_t>(1, static_cast<int64_t>(values_.size())); }
  int32_t* numbers() const { return numbers_.get(); }

 private:
  int64_t count_;
  std::vector<int64_t> values_;
  std::unique_ptr<int32_t[]> numbers_;
};

// Rows of x by the keys of their slots, and where each slot went; or with no rows the order of the slots.
anynpu_moe_init_routing_args sorting(const anynpu_tensor& x, const anynpu_tensor& keys, const anynpu_tensor& expanded_x,
                                     const anynpu_tensor& expanded_row_idx) {
  anynpu_moe_init_routing_args made = {};
  made.x = x;
  made.expert_idx = tensor_of(ANYNPU_INT32, nullptr, {keys.shape[0], keys.ndim == 2 ? keys.shape[1] : 1});
  made.expanded_x = expanded_x;
  made.expanded_row_idx = expanded_row_idx;
  made.expert_num = made.last_expert = 1;
  made.quant_mode = -1;
  return made;
}

int32_t sort(anynpu_moe_init_routing_args call, const anynpu_tensor& keys) {
  const Experts experts(keys);
  call.expert_idx.data = experts.numbers();
  call.expert_num = call.last_expert = experts.count();
  return anynpu_moe_init_routing(&call, nullptr, 0);
}

int32_t check_dtype(const char* name, const anynpu_tensor& tensor, bool holds, const char* expected) {
  if (holds) return ANYNPU_OK;
  return fail(ANYNPU_BAD_DTYPE, "%s must be %s, got %s", name, expected, anynpu::dtype_name(tensor.dtype));
}

int32_t check_int32(const char* name, const anynpu_tensor& tensor) {
  return check_dtype(name, tensor, tensor.dtype == ANYNPU_INT32, "int32");
}

int32_t check_shape(const char* name, const anynpu_tensor& tensor, std::initializer_list<int64_t> shape) {
  if (anynpu::has_shape(tensor, shape) && tensor.format == ANYNPU_ND) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE, "%s must be ND, of shape %s, got %s", name,
              anynpu::shape_text(tensor_of(ANYNPU_INT8, nullptr, shape)), anynpu::shape_text(tensor));
}

int32_t check_routing(const Routing* args, size_t* workspace_bytes) {
  *workspace_bytes = 0;
  const anynpu_tensor &x = args->x, &experts = args->expert_idx;
  for (const auto& [name, tensor] : {std::pair{"x", &x}, {"rowIdx", &args->row_idx}, {"expertIdx", &experts}}) {
    if (tensor->ndim == 2) continue;
    return fail(ANYNPU_BAD_SHAPE, "The %s should be 2D, got %dD", name, tensor->ndim);
  }
  const int64_t tokens = experts.shape[0], chosen = experts.shape[1];
  int64_t slots = 0;
  if (__builtin_mul_overflow(tokens, chosen, &slots) || slots > INT32_MAX) {
    return fail(ANYNPU_BAD_SHAPE, "expertIdx has too many elements for int32, %s", anynpu::shape_text(experts));
  }
  ANYNPU_TRY(check_dtype("x", x, x.dtype == ANYNPU_FLOAT32 || x.dtype == ANYNPU_FLOAT16 || x.dtype == ANYNPU_BFLOAT16,
                         "float32, float16 or bfloat16"));
  ANYNPU_TRY(check_shape("rowIdx", args->row_idx, {tokens, chosen}));
  ANYNPU_TRY(check_shape("x", x, {tokens, x.shape[1]}));
  ANYNPU_TRY(check_shape("expertIdx", experts, {tokens, chosen}));
  ANYNPU_TRY(
      check_shape("expandedXOut", args->expanded_x, {std::min(tokens, args->active_tokens) * chosen, x.shape[1]}));
  ANYNPU_TRY(check_shape("expandedRowIdxOut", args->expanded_row_idx, {slots}));
  ANYNPU_TRY(check_shape("expandedExpertIdxOut", args->expanded_expert_idx, {slots}));
  ANYNPU_TRY(check_int32("rowIdx", args->row_idx));
  ANYNPU_TRY(check_int32("expertIdx", experts));
  ANYNPU_TRY(check_int32("expandedRowIdxOut", args->expanded_row_idx));
  ANYNPU_TRY(check_int32("expandedExpertIdxOut", args->expanded_expert_idx));
  return check_dtype("expandedXOut", args->expanded_x, args->expanded_x.dtype == x.dtype, anynpu::dtype_name(x.dtype));
}

int32_t run_routing(const Routing* args, void*, size_t) {
  const int64_t slots = anynpu::element_count(args->expert_idx), tokens = args->x.shape[0];
  for (int64_t i = 0; i < slots; ++i) {
    const int64_t slot = value_at(args->row_idx, i);
    if (slot >= 0 && slot < slots) continue;
    return fail(ANYNPU_BAD_VALUE, "rowIdx must be in [0, N * K - 1] = [0, %lld], got %lld at %lld", wide(slots - 1),
                wide(slot), wide(i));
  }
  const std::unique_ptr<int32_t[]> order(new int32_t[slots]);
  anynpu_tensor no_rows = args->expanded_x;
  no_rows.shape[0] = 0;
  auto call = sorting(args->x, args->expert_idx, no_rows, tensor_of(ANYNPU_INT32, order.get(), {slots}));
  call.row_idx_type = 1;
  ANYNPU_TRY(sort(call, args->expert_idx));
  auto* places = static_cast<int32_t*>(args->expanded_row_idx.data);
  auto* experts = static_cast<int32_t*>(args->expanded_expert_idx.data);
  const int64_t bytes = args->x.shape[1] * anynpu::dtype_bits(args->x.dtype) / 8, rows = args->expanded_x.shape[0];
  std::fill_n(places, slots, 0);
  for (int64_t i = 0; i < slots; ++i) {
    const int64_t slot = value_at(args->row_idx, order[i]);
    places[slot] = static_cast<int32_t>(i);
    experts[i] = static_cast<int32_t>(value_at(args->expert_idx, order[i]));
    if (i >= rows || bytes == 0) continue;
    std::memcpy(static_cast<char*>(args->expanded_x.data) + i * bytes,
                static_cast<const char*>(args->x.data) + slot % tokens * bytes, bytes);
  }
  return ANYNPU_OK;
}

int32_t check_permutation(const Permutation* args, size_t* workspace_bytes) {
  const anynpu_tensor &tokens = args->tokens, &indices = args->indices;
  if (tokens.ndim != 2 || indices.ndim < 1 || indices.ndim > 2) {
    return fail(ANYNPU_BAD_SHAPE, "tokens must have 2 axes and indices 1 or 2, got %d and %d", tokens.ndim,
                indices.ndim);
  }
  ANYNPU_TRY(check_dtype("indices", indices, indices.dtype == ANYNPU_INT32 || indices.dtype == ANYNPU_INT64,
                         "int32 or int64"));
  if (indices.format != ANYNPU_ND) return fail(ANYNPU_BAD_SHAPE, "indices must be ND, got format %d", indices.format);
  const int64_t slots = anynpu::element_count(indices);
  if (slots > INT32_MAX) return fail(ANYNPU_BAD_SHAPE, "indices has too many elements for int32, %lld", wide(slots));
  const int64_t rows = args->rows > 0 ? std::min(args->rows, slots) : args->rows < -slots ? 0 : slots + args->rows;
  ANYNPU_TRY(check_shape("permuteTokensOut", args->permuted, {rows, tokens.shape[1]}));
  ANYNPU_TRY(check_shape("sortedIndicesOut", args->sorted_indices, {slots}));
  const auto call = sorting(tokens, indices, args->permuted, args->sorted_indices);
  return anynpu_moe_init_routing_check(&call, workspace_bytes);
}

int32_t run_permutation(const Permutation* args, void*, size_t) {
  return sort(sorting(args->tokens, args->indices, args->permuted, args->sorted_indices), args->indices);
}

anynpu_moe_finalize_routing_args summing(const Sum& args) {
  anynpu_moe_finalize_routing_args made = {};
  made.expanded_rows = args.permuted;
  made.scales = args.probs;
  made.row_idx = args.sorted_indices;
  made.y = args.out;
  made.drop_pad_mode = 2;
  return made;
}

int32_t check_sum(const Sum* args, size_t* workspace_bytes) {
  const anynpu_tensor &rows = args->permuted, &index = args->sorted_indices, &probs = args->probs;
  if (rows.ndim != 2 || index.ndim != 1 || (anynpu::present(probs) && probs.ndim != 2)) {
    return fail(ANYNPU_BAD_SHAPE,
                "permutedTokens must have 2 axes, sortedIndices 1 and probsOptional 2, got %s, %s, %s",
                anynpu::shape_text(rows), anynpu::shape_text(index), anynpu::shape_text(probs));
  }
  const int64_t tokens = anynpu::present(probs) ? probs.shape[0] : index.shape[0];
  ANYNPU_TRY(check_shape("out", args->out, {tokens, rows.shape[1]}));
  const auto call = summing(*args);
  return anynpu_moe_finalize_routing_check(&call, workspace_bytes);
}

int32_t run_sum(const Sum* args, void* workspace, size_t workspace_bytes) {
  const int64_t slots = args->sorted_indices.shape[0], rows = args->permuted.shape[0];
  const std::unique_ptr<int32_t[]> index(new int32_t[slots]);
  for (int64_t i = 0; i < slots; ++i) {  // what lies behind the rows was dropped
    const int64_t row = value_at(args->sorted_indices, i);
    index[i] = row >= rows ? -1 : static_cast<int32_t>(row);
  }
  auto call = summing(*args);
  call.row_idx.data = index.get();
  return anynpu_moe_finalize_routing(&call, workspace, workspace_bytes);
}

int32_t check_count(const Count* args, size_t* workspace_bytes) {
  *workspace_bytes = 0;
  ANYNPU_TRY(check_int32("sortedExperts", args->experts));
  ANYNPU_TRY(check_int32("out", args->out));
  if (args->experts.ndim == 1 && args->experts.format == ANYNPU_ND && args->out.format == ANYNPU_ND) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE, "sortedExperts must be ND with 1 axis and out ND, got %s",
              anynpu::shape_text(args->experts));
}

int32_t run_count(const Count* args, void*, size_t) {
  const auto* first = static_cast<const int32_t*>(args->experts.data);
  const auto* last = first + args->experts.shape[0];
  auto* out = static_cast<int32_t*>(args->out.data);
  for (int64_t expert = 0; expert < args->out.shape[0]; ++expert) {
    out[expert] = static_cast<int32_t>(std::upper_bound(first, last, expert) - first);
  }
  return ANYNPU_OK;
}

constexpr auto kRouting =
    anynpu::acl::make_operator<Routing, check_routing, run_routing>("aclnnMoeInitRouting", Views::copied);
constexpr auto kPermute =
    anynpu::acl::make_operator<Permutation, check_permutation, run_permutation>("aclnnMoeTokenPermute", Views::copied);
constexpr auto kUnpermute =
    anynpu::acl::make_operator<Sum, check_sum, run_sum>("aclnnMoeTokenUnpermute", Views::copied);
constexpr auto kCount =
    anynpu::acl::make_operator<Count, check_count, run_count>("aclnnMoeComputeExpertTokens", Views::copied);

}  // namespace

extern "C" aclnnStatus aclnnMoeInitRoutingGetWorkspaceSize(const aclTensor* x, const aclTensor* rowIdx,
                                                           const aclTensor* expertIdx, int64_t activeNum,
                                                           const aclTensor* expandedXOut,
                                                           const aclTensor* expandedRowIdxOut,
                                                           const aclTensor* expandedExpertIdxOut,
                                                           uint64_t* workspaceSize, aclOpExecutor** executor) {
  return anynpu::acl::first_stage<Routing>(kRouting, workspaceSize, executor, [&](auto& stage) {
    stage.input("x", x, &Routing::x);
    stage.input("rowIdx", rowIdx, &Routing::row_idx);
    stage.input("expertIdx", expertIdx, &Routing::expert_idx);
    stage.output("expandedXOut", expandedXOut, &Routing::expanded_x);
    stage.output("expandedRowIdxOut", expandedRowIdxOut, &Routing::expanded_row_idx);
    stage.output("expandedExpertIdxOut", expandedExpertIdxOut, &Routing::expanded_expert_idx);
    stage.require(activeNum >= 0, "activeNum must be a non-negative number, got %lld", wide(activeNum));
    stage.args.active_tokens = activeNum;
  });
}

ANYNPU_SECOND_STAGE(aclnnMoeInitRouting, kRouting)

extern "C" aclnnStatus aclnnMoeTokenPermuteGetWorkspaceSize(const aclTensor* tokens, const aclTensor* indices,
                                                            int64_t numOutTokens, bool paddedMode,
                                                            const aclTensor* permuteTokensOut,
                                                            const aclTensor* sortedIndicesOut, uint64_t* workspaceSize,
                                                            aclOpExecutor** executor) {
  return anynpu::acl::first_stage<Permutation>(kPermute, workspaceSize, executor, [&](auto& stage) {
    stage.input("tokens", tokens, &Permutation::tokens);
    stage.input("indices", indices, &Permutation::indices);
    stage.output("permuteTokensOut", permuteTokensOut, &Permutation::permuted);
    stage.output("sortedIndicesOut", sortedIndicesOut, &Permutation::sorted_indices);
    stage.require(!paddedMode, "paddedMode must be false, true is not implemented");
    stage.args.rows = numOutTokens;
  });
}

ANYNPU_SECOND_STAGE(aclnnMoeTokenPermute, kPermute)

// restoreShapeOptional belongs to paddedMode.
extern "C" aclnnStatus aclnnMoeTokenUnpermuteGetWorkspaceSize(const aclTensor* permutedTokens,
                                                              const aclTensor* sortedIndices,
                                                              const aclTensor* probsOptional, bool paddedMode,
                                                              const aclIntArray*, const aclTensor* out,
                                                              uint64_t* workspaceSize, aclOpExecutor** executor) {
  return anynpu::acl::first_stage<Sum>(kUnpermute, workspaceSize, executor, [&](auto& stage) {
    stage.input("permutedTokens", permutedTokens, &Sum::permuted);
    stage.input("sortedIndices", sortedIndices, &Sum::sorted_indices);
    stage.optional("probsOptional", probsOptional, &Sum::probs);
    stage.output("out", out, &Sum::out);
    stage.require(!paddedMode, "paddedMode must be false, true is not implemented");
  });
}

ANYNPU_SECOND_STAGE(aclnnMoeTokenUnpermute, kUnpermute)

extern "C" aclnnStatus aclnnMoeComputeExpertTokensGetWorkspaceSize(const aclTensor* sortedExperts, int64_t numExperts,
                                                                   const aclTensor* out, uint64_t* workspaceSize,
                                                                   aclOpExecutor** executor) {
  return anynpu::acl::first_stage<Count>(kCount, workspaceSize, executor, [&](auto& stage) {
    stage.input("sortedExperts", sortedExperts, &Count::experts);
    stage.output("out", out, &Count::out);
    stage.require(numExperts >= 1, "numExperts must be at least 1, got %lld", wide(numExperts));
    stage.require(anynpu::has_shape(stage.args.out, {numExperts}), "out must have shape (%lld,), got %s",
                  wide(numExperts), anynpu::shape_text(stage.args.out));
  });
}

ANYNPU_SECOND_STAGE(aclnnMoeComputeExpertTokens, kCount)
