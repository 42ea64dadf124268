// SPDX-License-Identifier: Apache-2.0
// Random descriptions of tensors for every operator: dtypes, ranks, shapes, strides, offsets, formats, storage shapes,
// addresses and attributes, right and wrong. Every call must answer with a status; a sanitizer watches, or, in a program
// that is linked with failing_malloc.cc too, allocations fail.
// Arguments: seconds [seed]
#include <algorithm>
#include <chrono>
#include <cinttypes>
#include <random>

#include "aclnnop/aclnn_add.h"
#include "aclnnop/aclnn_add_rms_norm.h"
#include "aclnnop/aclnn_apply_rotary_pos_emb.h"
#include "aclnnop/aclnn_apply_rotary_pos_emb_v2.h"
#include "aclnnop/aclnn_argmax.h"
#include "aclnnop/aclnn_ascend_anti_quant.h"
#include "aclnnop/aclnn_ascend_quant.h"
#include "aclnnop/aclnn_ascend_quant_v3.h"
#include "aclnnop/aclnn_cast.h"
#include "aclnnop/aclnn_cat.h"
#include "aclnnop/aclnn_convert_weight_to_int4_pack.h"
#include "aclnnop/aclnn_copy.h"
#include "aclnnop/aclnn_dequant_rope_quant_kvcache.h"
#include "aclnnop/aclnn_dequant_swiglu_quant.h"
#include "aclnnop/aclnn_dequant_swiglu_quant_v2.h"
#include "aclnnop/aclnn_div.h"
#include "aclnnop/aclnn_dynamic_quant.h"
#include "aclnnop/aclnn_dynamic_quant_v2.h"
#include "aclnnop/aclnn_embedding.h"
#include "aclnnop/aclnn_fused_infer_attention_score_v2.h"
#include "aclnnop/aclnn_fused_infer_attention_score_v3.h"
#include "aclnnop/aclnn_grouped_matmul.h"
#include "aclnnop/aclnn_grouped_matmul_finalize_routing.h"
#include "aclnnop/aclnn_grouped_matmul_finalize_routing_v3.h"
#include "aclnnop/aclnn_grouped_matmul_v2.h"
#include "aclnnop/aclnn_grouped_matmul_v3.h"
#include "aclnnop/aclnn_grouped_matmul_v4.h"
#include "aclnnop/aclnn_grouped_matmul_v5.h"
#include "aclnnop/aclnn_incre_flash_attention_v4.h"
#include "aclnnop/aclnn_index_select.h"
#include "aclnnop/aclnn_matmul.h"
#include "aclnnop/aclnn_matmul_compress_dequant.h"
#include "aclnnop/aclnn_mm.h"
#include "aclnnop/aclnn_moe_compute_expert_tokens.h"
#include "aclnnop/aclnn_moe_finalize_routing.h"
#include "aclnnop/aclnn_moe_finalize_routing_v2.h"
#include "aclnnop/aclnn_moe_gating_top_k.h"
#include "aclnnop/aclnn_moe_gating_top_k_softmax.h"
#include "aclnnop/aclnn_moe_gating_top_k_softmax_v2.h"
#include "aclnnop/aclnn_moe_init_routing.h"
#include "aclnnop/aclnn_moe_init_routing_quant_v2.h"
#include "aclnnop/aclnn_moe_init_routing_v2.h"
#include "aclnnop/aclnn_moe_init_routing_v3.h"
#include "aclnnop/aclnn_moe_token_permute.h"
#include "aclnnop/aclnn_moe_token_unpermute.h"
#include "aclnnop/aclnn_mul.h"
#include "aclnnop/aclnn_npu_format_cast.h"
#include "aclnnop/aclnn_permute.h"
#include "aclnnop/aclnn_prompt_flash_attention_v2.h"
#include "aclnnop/aclnn_prompt_flash_attention_v3.h"
#include "aclnnop/aclnn_quant_matmul_v3.h"
#include "aclnnop/aclnn_quant_matmul_v4.h"
#include "aclnnop/aclnn_quant_matmul_v5.h"
#include "aclnnop/aclnn_quant_matmul_weight_nz.h"
#include "aclnnop/aclnn_quantize.h"
#include "aclnnop/aclnn_rms_norm.h"
#include "aclnnop/aclnn_rotary_position_embedding.h"
#include "aclnnop/aclnn_silu.h"
#include "aclnnop/aclnn_softmax.h"
#include "aclnnop/aclnn_sub.h"
#include "aclnnop/aclnn_swi_glu.h"
#include "aclnnop/aclnn_topk.h"
#include "aclnnop/aclnn_trans_matmul_weight.h"
#include "aclnnop/aclnn_trans_quant_param.h"
#include "aclnnop/aclnn_trans_quant_param_v2.h"
#include "aclnnop/aclnn_trans_quant_param_v3.h"
#include "aclnnop/aclnn_weight_quant_batch_matmul_v2.h"
#include "aclnnop/aclnn_weight_quant_batch_matmul_v3.h"
#include "failing_malloc.h"
#include "fuzz_tensors.h"

namespace {

using Second = aclnnStatus (*)(void*, uint64_t, aclOpExecutor*, aclrtStream);

const Second kSeconds[] = {aclnnCast, aclnnConvertWeightToINT4Pack, aclnnWeightQuantBatchMatmulV2, aclnnQuantize};
const bool kFailing = fail_allocations != nullptr;
int64_t calls = 0, launched = 0, passed = 0;

// References: the call of the first stage stands beside them in the arguments, and sets both.
void finish(int first_status, const uint64_t& size, aclOpExecutor* const& executor, Second second) {
  ++calls;
  if (first_status != ACLNN_SUCCESS) {
    EXPECT(aclGetRecentErrMsg() != nullptr);
    if (chance(90)) return;
  }
  void* workspace = nullptr;
  uint64_t given = size;
  if (size > 0 && size < (1u << 26) && chance(70)) {
    EXPECT(aclrtMalloc(&workspace, size, ACL_MEM_MALLOC_NORMAL_ONLY) == ACL_SUCCESS || kFailing);
  }
  if (chance(3)) given = pick(0, 100);
  if (chance(2)) second = one_of(kSeconds);
  const int status = second(workspace, given, executor, nullptr);
  if (status != ACLNN_SUCCESS) {
    EXPECT(aclGetRecentErrMsg() != nullptr);
    aclDestroyAclOpExecutor(executor);
  } else {
    ++launched;
    if (chance(3)) EXPECT(second(workspace, given, executor, nullptr) != ACLNN_SUCCESS);
    if (aclrtSynchronizeStream(nullptr) == ACL_SUCCESS) ++passed;
  }
  aclGetRecentErrMsg();
  if (workspace != nullptr) EXPECT_OK(aclrtFree(workspace));
}

// Of an array that could be made.
void destroy(const aclIntArray* array) {
  if (array != nullptr) EXPECT_OK(aclDestroyIntArray(array));
}

void int4_pack(Tensors& tensors) {
  const bool words = chance(50);
  const int64_t k = pick(1, 40), n = pick(1, 10) * (words || chance(50) ? 8 : 2);
  const std::vector<int64_t> shape = {k, n};
  uint64_t size = 0;
  aclOpExecutor* executor = nullptr;
  const aclTensor* weight = tensors.random(shape, ACL_INT32);
  const int status = aclnnConvertWeightToINT4PackGetWorkspaceSize(
      weight, tensors.output({k, words ? n / 8 : n}, words ? ACL_INT32 : ACL_INT4), &size, &executor);
  finish(status, size, executor, aclnnConvertWeightToINT4Pack);
}

void cast(Tensors& tensors) {
  std::vector<int64_t> shape(pick(0, 4));
  for (int64_t& size : shape) size = pick(1, 9);
  const aclDataType dtype = one_of(kDtypes);
  uint64_t size = 0;
  aclOpExecutor* executor = nullptr;
  const aclTensor* from = tensors.random(shape, one_of(kDtypes));
  const int status = aclnnCastGetWorkspaceSize(from, slip(3) ? one_of(kDtypes) : dtype, tensors.output(shape, dtype),
                                               &size, &executor);
  finish(status, size, executor, aclnnCast);
}

void matmul(Tensors& tensors) {
  const aclDataType kX[] = {ACL_FLOAT16, ACL_BF16, ACL_FLOAT};
  const int64_t m = pick(1, 5), k = pick(1, 12) * 8, n = pick(1, 12) * 8;
  const int kind = static_cast<int>(pick(0, 2));
  const int group = chance(60) ? 0 : static_cast<int>(slip(20) ? pick(INT32_MIN, INT32_MAX) : 32 * pick(1, 3));
  const aclDataType dtype = one_of(kX), scale_dtype = slip(10) ? ACL_INT64 : dtype;
  std::vector<int64_t> scale = {n};
  if (group != 0) scale = {group > 0 ? (k + group - 1) / group : 1, n};
  if (chance(10)) scale = {1};
  const bool quantised = chance(20);
  uint64_t size = 0;
  aclOpExecutor* executor = nullptr;
  const aclTensor* x = tensors.random({m, k}, dtype);
  const aclTensor* weight = kind == 0   ? tensors.random({k, n}, ACL_INT8)
                            : kind == 1 ? tensors.random({k, n / 8}, ACL_INT32)
                                        : tensors.random({k, n}, ACL_INT4);
  const aclTensor* antiquant_scale = tensors.random(scale, scale_dtype);
  const aclTensor* offset = tensors.maybe(40, scale, scale_dtype);
  const aclTensor* quant_scale = quantised ? tensors.random({n}, ACL_FLOAT) : nullptr;
  const aclTensor* quant_offset = tensors.maybe(quantised ? 50 : 0, {n}, ACL_FLOAT);
  const aclTensor* bias = tensors.maybe(30, {n}, dtype == ACL_BF16 ? ACL_FLOAT : dtype);
  const aclTensor* y = tensors.random({m, n}, quantised ? ACL_INT8 : dtype);
  if (chance(50)) {
    const int status = aclnnWeightQuantBatchMatmulV2GetWorkspaceSize(x, weight, antiquant_scale, offset, quant_scale,
                                                                     quant_offset, bias, group, y, &size, &executor);
    finish(status, size, executor, aclnnWeightQuantBatchMatmulV2);
  } else {
    const int precise = static_cast<int>(slip(10) ? pick(-5, 5) : pick(0, 1));
    const int status = aclnnWeightQuantBatchMatmulV3GetWorkspaceSize(
        x, weight, antiquant_scale, offset, quant_scale, quant_offset, bias, group, precise, y, &size, &executor);
    finish(status, size, executor, aclnnWeightQuantBatchMatmulV3);
  }
}

void quant_matmul(Tensors& tensors) {
  const aclDataType kScales[] = {ACL_FLOAT, ACL_BF16, ACL_INT64, ACL_UINT64},
                    kOut[] = {ACL_INT8, ACL_FLOAT16, ACL_BF16, ACL_INT32};
  const int64_t m = pick(1, 20), k = pick(1, 99), n = pick(1, 99);
  const bool transpose_x1 = chance(20), transpose_x2 = chance(50);
  const aclDataType out_dtype = one_of(kOut);
  uint64_t size = 0;
  aclOpExecutor* executor = nullptr;
  const aclTensor* x1 =
      tensors.random(transpose_x1 ? std::vector<int64_t>{k, m} : std::vector<int64_t>{m, k}, ACL_INT8);
  const aclTensor* x2 =
      tensors.random(transpose_x2 ? std::vector<int64_t>{n, k} : std::vector<int64_t>{k, n}, ACL_INT8);
  const aclTensor* scale = tensors.random({chance(30) ? 1 : n}, one_of(kScales));
  const aclTensor* offset = tensors.maybe(out_dtype == ACL_INT8 ? 50 : 0, {n}, ACL_FLOAT);
  const aclTensor* token = tensors.maybe(40, {m}, ACL_FLOAT);
  const aclTensor* bias = tensors.maybe(30, {n}, ACL_INT32);
  aclTensor* out = tensors.output({m, n}, out_dtype);
  if (chance(30)) {
    finish(aclnnQuantMatmulV3GetWorkspaceSize(x1, x2, scale, offset, bias, transpose_x1, transpose_x2, out, &size,
                                              &executor),
           size, executor, aclnnQuantMatmulV3);
  } else if (chance(80)) {
    finish(aclnnQuantMatmulV4GetWorkspaceSize(x1, x2, scale, offset, token, bias, transpose_x1, transpose_x2, out,
                                              &size, &executor),
           size, executor, aclnnQuantMatmulV4);
  } else {
    const aclTensor* reserved = slip(5) ? tensors.random({n}, ACL_FLOAT) : nullptr;
    if (chance(50)) {
      return finish(aclnnQuantMatmulV5GetWorkspaceSize(x1, x2, token, scale, reserved, nullptr, offset, reserved, bias,
                                                       transpose_x1, transpose_x2, slip(5) ? pick(-1, 128) : 0, out,
                                                       &size, &executor),
                    size, executor, aclnnQuantMatmulV5);
    }
    finish(aclnnQuantMatmulWeightNzGetWorkspaceSize(x1, x2, token, scale, reserved, nullptr, offset, reserved, bias,
                                                    transpose_x1, transpose_x2, slip(5) ? pick(-1, 128) : 0, out, &size,
                                                    &executor),
           size, executor, aclnnQuantMatmulWeightNz);
  }
}

void dynamic_quant(Tensors& tensors) {
  const aclDataType kX[] = {ACL_FLOAT16, ACL_BF16, ACL_FLOAT};
  const int64_t rows = pick(1, 9), columns = pick(1, 9) * 8, groups = pick(1, 3);
  const aclDataType dtype = one_of(kX), y_dtype = chance(70) ? ACL_INT8 : ACL_INT4;
  const bool grouped = chance(40);
  const std::vector<int64_t> smooth = grouped ? std::vector<int64_t>{groups, columns} : std::vector<int64_t>{columns};
  uint64_t size = 0;
  aclOpExecutor* executor = nullptr;
  const aclTensor* x = tensors.random({rows, columns}, dtype);
  const aclTensor* scales = tensors.maybe(grouped ? 97 : 40, smooth, dtype);
  const aclTensor* index = grouped ? tensors.random({groups}, ACL_INT32) : nullptr;
  aclTensor *y = tensors.output({rows, columns}, y_dtype), *scale = tensors.output({rows}, ACL_FLOAT);
  if (grouped || chance(50)) {
    const int64_t code = slip(5) ? one_of(kHuge) : int64_t{y_dtype};
    finish(
        aclnnDynamicQuantV2GetWorkspaceSize(x, scales, index, code, y, scale, slip(3) ? x : nullptr, &size, &executor),
        size, executor, aclnnDynamicQuantV2);
  } else {
    finish(aclnnDynamicQuantGetWorkspaceSize(x, scales, y, scale, &size, &executor), size, executor, aclnnDynamicQuant);
  }
}

void dequant_swiglu_quant(Tensors& tensors) {
  const aclDataType kX[] = {ACL_INT32, ACL_FLOAT16, ACL_BF16, ACL_FLOAT};
  const int64_t rows = pick(1, 9), outputs = pick(1, 70), groups = pick(1, 3);
  const aclDataType dtype = one_of(kX);
  const bool grouped = chance(40), dynamic = chance(60);
  char dynamically[] = "dynamic", statically[] = "static", odd[] = "odd";
  uint64_t size = 0;
  aclOpExecutor* executor = nullptr;
  const int64_t own = grouped ? groups : 1;
  const aclTensor* x = tensors.random({rows, 2 * outputs}, dtype);
  const aclTensor* weight_scale = tensors.maybe(dtype == ACL_INT32 ? 97 : 20, {own, 2 * outputs}, ACL_FLOAT);
  const aclTensor* activation_scale = tensors.maybe(50, {rows}, ACL_FLOAT);
  const aclTensor* bias = tensors.maybe(grouped ? 0 : 40, {2 * outputs}, chance(50) ? ACL_INT32 : ACL_FLOAT);
  const aclTensor* quant_scale = tensors.maybe(50, {own, outputs}, ACL_FLOAT);
  const aclTensor* quant_offset = tensors.maybe(grouped || dynamic ? 0 : 50, {own, outputs}, ACL_FLOAT);
  const aclTensor* index = grouped ? tensors.random({groups}, ACL_INT64) : nullptr;
  aclTensor *y = tensors.output({rows, outputs}, ACL_INT8), *scale = tensors.output({rows}, ACL_FLOAT);
  if (chance(50)) {
    char rint[] = "rint";
    const int status = aclnnDequantSwigluQuantV2GetWorkspaceSize(
        x, weight_scale, activation_scale, bias, quant_scale, quant_offset, index, chance(50),
        dynamic ? dynamically : statically, slip(5) ? 3 : 2, slip(5) ? odd : rint, slip(5) ? 0 : -1, pick(0, 2), 7.0,
        1.702, 1.0, y, scale, &size, &executor);
    return finish(status, size, executor, aclnnDequantSwigluQuantV2);
  }
  const int status = aclnnDequantSwigluQuantGetWorkspaceSize(x, weight_scale, activation_scale, bias, quant_scale,
                                                             quant_offset, index, chance(50),
                                                             slip(5)      ? odd
                                                             : dynamic    ? dynamically
                                                             : chance(50) ? statically
                                                                          : nullptr,
                                                             y, scale, &size, &executor);
  finish(status, size, executor, aclnnDequantSwigluQuant);
}

void swiglu(Tensors& tensors) {
  const aclDataType kX[] = {ACL_FLOAT16, ACL_BF16, ACL_FLOAT};
  const aclDataType dtype = one_of(kX);
  std::vector<int64_t> shape(pick(1, 4));
  for (int64_t& size : shape) size = pick(0, 9);
  const int64_t rank = static_cast<int64_t>(shape.size()), dim = pick(0, rank - 1);
  uint64_t size = 0;
  aclOpExecutor* executor = nullptr;
  aclTensor* out = tensors.output(shape, dtype);
  shape[dim] *= 2;
  const int status = aclnnSwiGluGetWorkspaceSize(tensors.random(shape, dtype),
                                                 slip(3)      ? one_of(kHuge)
                                                 : chance(50) ? dim
                                                              : dim - rank,
                                                 out, &size, &executor);
  finish(status, size, executor, aclnnSwiGlu);
}

void moe_init_routing(Tensors& tensors) {
  const aclDataType kX[] = {ACL_FLOAT16, ACL_BF16, ACL_FLOAT};
  const int64_t tokens = pick(1, 9), width = pick(1, 40), chosen = pick(1, 4), experts = pick(1, 8);
  const aclDataType dtype = one_of(kX);
  const bool padded = chance(30);
  const int64_t capacity = slip(5) ? pick(-1, 40) : pick(1, tokens), slots = tokens * chosen;
  const int64_t active = slip(5) ? one_of(kHuge) : 0, rows = padded ? experts * capacity : slots;
  const std::vector<int64_t> shape =
      padded ? std::vector<int64_t>{experts, capacity, width} : std::vector<int64_t>{slots, width};
  const int64_t expert_num = slip(5) ? one_of(kHuge) : experts, mode = slip(3) ? one_of(kHuge) : padded;
  uint64_t size = 0;
  aclOpExecutor* executor = nullptr;
  const aclTensor *x = tensors.random({tokens, width}, dtype), *ids = tensors.random({tokens, chosen}, ACL_INT32);
  aclTensor* index = tensors.output({slots}, ACL_INT32);
  if (chance(50)) {
    aclTensor* expanded = tensors.output(shape, dtype);
    aclTensor *sums = tensors.output({experts}, ACL_INT32), *all = tensors.output({experts}, ACL_INT32);
    const int64_t flag = slip(3) ? one_of(kHuge) : pick(0, 2);
    finish(aclnnMoeInitRoutingV2GetWorkspaceSize(x, ids, active, capacity, expert_num, mode, flag, chance(50), expanded,
                                                 index, sums, all, &size, &executor),
           size, executor, aclnnMoeInitRoutingV2);
    return;
  }
  if (chance(30)) {
    const bool dynamic = chance(50);
    const aclTensor* scale = dynamic ? tensors.maybe(50, {experts, width}, ACL_FLOAT) : tensors.random({1}, ACL_FLOAT);
    const aclTensor* offset = dynamic ? nullptr : tensors.random({1}, ACL_FLOAT);
    aclTensor *expanded = tensors.output(shape, ACL_INT8), *sums = tensors.output({experts}, ACL_INT32),
              *all = tensors.output({experts}, ACL_INT32), *row_scale = tensors.output({rows}, ACL_FLOAT);
    const int64_t flag = slip(3) ? one_of(kHuge) : pick(0, 2), quantised = slip(3) ? one_of(kHuge) : dynamic;
    finish(aclnnMoeInitRoutingQuantV2GetWorkspaceSize(x, ids, scale, offset, active, capacity, expert_num, mode, flag,
                                                      chance(50), quantised, expanded, index, sums, all, row_scale,
                                                      &size, &executor),
           size, executor, aclnnMoeInitRoutingQuantV2);
    return;
  }
  const int64_t quant_mode = slip(3) ? one_of(kHuge) : pick(-1, 1), type = slip(3) ? one_of(kHuge) : pick(0, 1);
  const int64_t range[] = {slip(5) ? one_of(kHuge) : 0, slip(5) ? one_of(kHuge) : experts};
  aclIntArray* array = aclCreateIntArray(range, slip(3) ? pick(0, 1) : 2);
  const aclTensor* scale = quant_mode == 0 ? tensors.random({1}, ACL_FLOAT) : nullptr;
  const aclTensor* offset = quant_mode == 0 ? tensors.random({1}, ACL_FLOAT) : nullptr;
  aclTensor* expanded = tensors.output(shape, quant_mode == -1 ? dtype : ACL_INT8);
  aclTensor *counts = tensors.output({experts}, ACL_INT64), *row_scale = tensors.output({rows}, ACL_FLOAT);
  finish(aclnnMoeInitRoutingV3GetWorkspaceSize(x, ids, scale, offset, active, capacity, expert_num, mode, type, true,
                                               quant_mode, chance(50) ? array : nullptr,
                                               slip(3)  ? one_of(kHuge)
                                               : padded ? 0
                                                        : pick(0, 1),
                                               expanded, index, counts, row_scale, &size, &executor),
         size, executor, aclnnMoeInitRoutingV3);
  destroy(array);
}

void moe_tokens(Tensors& tensors) {
  const aclDataType kX[] = {ACL_FLOAT16, ACL_BF16, ACL_FLOAT};
  const int64_t tokens = pick(0, 9), width = pick(0, 40), chosen = pick(1, 4), slots = tokens * chosen;
  const int64_t active = slip(5) ? one_of(kHuge) : pick(0, tokens), experts = slip(5) ? one_of(kHuge) : pick(1, 9);
  const aclDataType dtype = one_of(kX), index = chance(50) ? ACL_INT64 : ACL_INT32;
  uint64_t size = 0;
  aclOpExecutor* executor = nullptr;
  const aclTensor *x = tensors.random({tokens, width}, dtype), *ids = tensors.random({tokens, chosen}, ACL_INT32);
  aclTensor* places = tensors.output({slots}, ACL_INT32);
  switch (pick(0, 3)) {
    case 0: {
      aclTensor *rows = tensors.output({std::min(tokens, active < 0 ? 0 : active) * chosen, width}, dtype),
                *sorted = tensors.output({slots}, ACL_INT32);
      const aclTensor* numbers = tensors.random({tokens, chosen}, ACL_INT32);
      finish(aclnnMoeInitRoutingGetWorkspaceSize(x, numbers, ids, active, rows, places, sorted, &size, &executor), size,
             executor, aclnnMoeInitRouting);
      break;
    }
    case 1: {
      const int64_t count = slip(5) ? one_of(kHuge) : 0;
      aclTensor* rows = tensors.output({slots, width}, dtype);
      finish(aclnnMoeTokenPermuteGetWorkspaceSize(x, tensors.random({tokens, chosen}, index), count, slip(3), rows,
                                                  places, &size, &executor),
             size, executor, aclnnMoeTokenPermute);
      break;
    }
    case 2: {
      const aclTensor *rows = tensors.random({pick(0, 20), width}, dtype),
                      *probs = tensors.maybe(chosen == 1 ? 50 : 97, {tokens, chosen}, one_of(kX));
      finish(aclnnMoeTokenUnpermuteGetWorkspaceSize(rows, places, probs, slip(3), nullptr,
                                                    tensors.output({tokens, width}, dtype), &size, &executor),
             size, executor, aclnnMoeTokenUnpermute);
      break;
    }
    default:
      finish(aclnnMoeComputeExpertTokensGetWorkspaceSize(places, experts, tensors.output({experts}, ACL_INT32), &size,
                                                         &executor),
             size, executor, aclnnMoeComputeExpertTokens);
  }
}

void moe_finalize_routing(Tensors& tensors) {
  const aclDataType kX[] = {ACL_FLOAT16, ACL_BF16, ACL_FLOAT};
  const int64_t tokens = pick(0, 9), width = pick(0, 70), chosen = pick(1, 4), experts = pick(1, 8);
  const aclDataType dtype = one_of(kX);
  const std::vector<int64_t> shape = {tokens, width};
  uint64_t size = 0;
  aclOpExecutor* executor = nullptr;
  const aclTensor* rows =
      chance(70) ? tensors.random({pick(1, 40), width}, dtype) : tensors.random({experts, pick(1, 5), width}, dtype);
  const aclTensor* index = tensors.random({tokens * chosen}, ACL_INT32);
  const bool first = chance(30);
  const aclTensor *skip1 = tensors.maybe(first ? 97 : 50, shape, dtype), *skip2 = tensors.maybe(50, shape, dtype);
  const aclTensor* bias = tensors.maybe(first ? 97 : 30, {experts, width}, dtype);
  const aclTensor* scales = tensors.maybe(80, {tokens, chosen}, chance(50) ? dtype : one_of(kX));
  const aclTensor* ids = tensors.maybe(bias == nullptr ? 20 : 97, {tokens, chosen}, ACL_INT32);
  aclTensor* out = tensors.output(shape, dtype);
  if (first) {
    finish(aclnnMoeFinalizeRoutingGetWorkspaceSize(rows, skip1, skip2, bias, scales, index, ids, out, &size, &executor),
           size, executor, aclnnMoeFinalizeRouting);
    return;
  }
  const int64_t mode = slip(3) ? one_of(kHuge) : pick(0, 3);
  finish(aclnnMoeFinalizeRoutingV2GetWorkspaceSize(rows, index, skip1, skip2, bias, scales, ids, mode, out, &size,
                                                   &executor),
         size, executor, aclnnMoeFinalizeRoutingV2);
}

void moe_gating_topk_softmax(Tensors& tensors) {
  const aclDataType kX[] = {ACL_FLOAT16, ACL_BF16, ACL_FLOAT};
  const int64_t tokens = pick(0, 9), experts = pick(0, 70), k = pick(0, experts < 9 ? experts : 9);
  const aclDataType dtype = one_of(kX);
  const int64_t wanted = slip(5) ? one_of(kHuge) : k;
  uint64_t size = 0;
  aclOpExecutor* executor = nullptr;
  const aclTensor *x = tensors.random({tokens, experts}, dtype), *finished = tensors.maybe(40, {tokens}, ACL_BOOL);
  aclTensor *y = tensors.output({tokens, k}, dtype), *ids = tensors.output({tokens, k}, ACL_INT32);
  if (chance(50)) {
    aclTensor* places = tensors.output({tokens, k}, ACL_INT32);
    finish(aclnnMoeGatingTopKSoftmaxGetWorkspaceSize(x, finished, wanted, y, ids, places, &size, &executor), size,
           executor, aclnnMoeGatingTopKSoftmax);
    return;
  }
  const int64_t renorm = slip(5) ? one_of(kHuge) : pick(0, 1);
  finish(aclnnMoeGatingTopKSoftmaxV2GetWorkspaceSize(x, finished, wanted, renorm, chance(50), y, ids,
                                                     tensors.output({tokens, experts}, ACL_FLOAT), &size, &executor),
         size, executor, aclnnMoeGatingTopKSoftmaxV2);
}

// The four kinds of products, over one weight for all groups, or lists.
void grouped_matmul(Tensors& tensors) {
  using Shapes = std::vector<std::vector<int64_t>>;
  const aclDataType kX[] = {ACL_FLOAT16, ACL_BF16, ACL_FLOAT};
  const int64_t m = pick(1, 9), k = pick(1, 9) * 8, n = pick(1, 9) * 8, experts = pick(1, 4);
  const bool floats = chance(40), int4 = chance(40), antiquant = floats && chance(60), sums = !floats && chance(40);
  const bool stacked = chance(60), paired = !stacked && chance(60), split = !stacked && chance(50);
  const aclDataType dtype = !floats ? ACL_INT8 : antiquant ? ACL_FLOAT16 : one_of(kX);
  const aclDataType w = floats && !antiquant ? dtype : int4 && !sums ? ACL_INT4 : ACL_INT8;
  const bool columns = w == dtype && floats && chance(10);
  const auto of_weights = [&](std::vector<int64_t> shape) {
    if (!stacked) return Shapes(experts, shape);
    shape.insert(shape.begin(), experts);
    return Shapes{shape};
  };
  const Shapes one_x = columns ? Shapes{{m, k * experts}} : Shapes{{m, k}};
  aclTensorList* x = tensors.list(paired ? Shapes(experts, {m, k}) : one_x, dtype);
  aclTensorList* weight = tensors.list(columns && stacked ? Shapes{{k * experts, n}} : of_weights({k, n}), w);
  aclTensorList* bias = chance(20) ? tensors.list(of_weights({n}), floats ? ACL_FLOAT : ACL_INT32) : nullptr;
  aclTensorList *scale = nullptr, *token = nullptr, *antiquant_scale = nullptr, *antiquant_offset = nullptr;
  aclDataType results = floats ? dtype : sums ? ACL_INT32 : chance(50) ? ACL_FLOAT16 : ACL_BF16;
  if (antiquant) antiquant_scale = tensors.list(of_weights({n}), dtype);
  if (antiquant && chance(50)) antiquant_offset = tensors.list(of_weights({n}), dtype);
  if (!floats && !sums) {
    const bool words = w == ACL_INT4 || chance(20);
    scale = tensors.list(w == ACL_INT4 ? of_weights({1, n}) : of_weights({n}), words ? ACL_INT64 : ACL_FLOAT);
    if (words && w == ACL_INT8) results = ACL_INT8;
    if (chance(50)) token = tensors.list(paired ? Shapes(experts, {m}) : Shapes{{m}}, ACL_FLOAT);
  }
  aclTensorList* other = slip(5) ? tensors.list({{n}}, ACL_FLOAT) : nullptr;
  const Shapes one_y = columns ? Shapes{{experts, m, n}} : Shapes{{paired ? m * experts : m, n}};
  aclTensorList* out = tensors.list(split ? Shapes(experts, {m, n}) : one_y, results);
  std::vector<int64_t> ends(slip(5) ? pick(0, 4) : experts, columns ? k * experts : m);
  aclIntArray* host = paired && split ? nullptr : aclCreateIntArray(ends.data(), ends.size());
  const bool pairs = slip(5);
  const aclTensor* list =
      paired ? nullptr : tensors.random(pairs ? std::vector<int64_t>{2, 2} : std::vector<int64_t>{experts}, ACL_INT64);
  const int64_t item = slip(5) ? one_of(kHuge) : split ? pick(0, 1) : pick(2, 3);
  const int64_t type = slip(5) ? one_of(kHuge) : columns ? 2 : paired && split ? -1 : 0;
  const int64_t list_type = slip(5) ? one_of(kHuge) : pairs ? 2 : pick(0, 1), activation = slip(3) ? 1 : 0;
  uint64_t size = 0;
  aclOpExecutor* executor = nullptr;
  switch (token != nullptr ? pick(3, 4) : pick(0, 4)) {
    case 0:
      finish(aclnnGroupedMatmulGetWorkspaceSize(x, weight, bias, scale, other, antiquant_scale, antiquant_offset, host,
                                                item, out, &size, &executor),
             size, executor, aclnnGroupedMatmul);
      break;
    case 1:
      finish(aclnnGroupedMatmulV2GetWorkspaceSize(x, weight, bias, scale, other, antiquant_scale, antiquant_offset,
                                                  host, item, type, out, &size, &executor),
             size, executor, aclnnGroupedMatmulV2);
      break;
    case 2:
      finish(aclnnGroupedMatmulV3GetWorkspaceSize(x, weight, bias, scale, other, antiquant_scale, antiquant_offset,
                                                  list, item, type, out, &size, &executor),
             size, executor, aclnnGroupedMatmulV3);
      break;
    case 3:
      finish(aclnnGroupedMatmulV4GetWorkspaceSize(x, weight, bias, scale, other, antiquant_scale, antiquant_offset,
                                                  token, list, nullptr, nullptr, nullptr, item, type, list_type,
                                                  activation, out, other, nullptr, &size, &executor),
             size, executor, aclnnGroupedMatmulV4);
      break;
    default:
      finish(aclnnGroupedMatmulV5GetWorkspaceSize(x, weight, bias, scale, other, antiquant_scale, antiquant_offset,
                                                  token, list, nullptr, nullptr, nullptr, item, type, list_type,
                                                  activation, nullptr, out, other, nullptr, &size, &executor),
             size, executor, aclnnGroupedMatmulV5);
  }
  destroy(host);
  for (aclTensorList* each : {x, weight, bias, scale, token, antiquant_scale, antiquant_offset, other, out}) {
    if (each != nullptr) EXPECT_OK(aclDestroyTensorList(each));
  }
}

void grouped_matmul_combine(Tensors& tensors) {
  const int64_t m = pick(1, 9), int4 = pick(0, 1), k = pick(1, 9) * 8, n = pick(1, 9) * (chance(50) ? 64 : 8);
  const int64_t experts = pick(1, 4), batch = pick(1, 9), shared_rows = pick(1, batch);
  using Shape = std::vector<int64_t>;
  const aclTensor* x = tensors.random({m, k}, ACL_INT8);
  aclTensor* weight = tensors.output({experts, k, n}, int4 ? ACL_INT4 : ACL_INT8);
  const aclTensor* scale = tensors.random(int4 ? Shape{experts, 1, n} : Shape{experts, n}, int4         ? ACL_INT64
                                                                                           : chance(50) ? ACL_FLOAT
                                                                                                        : ACL_BF16);
  const aclTensor *bias = tensors.maybe(int4 ? 50 : 0, {experts, n}, ACL_FLOAT),
                  *offset = tensors.maybe(int4 ? 30 : 0, {experts, 1, n}, ACL_FLOAT),
                  *token = tensors.maybe(70, {m}, ACL_FLOAT), *groups = tensors.random({experts}, ACL_INT64),
                  *shared = tensors.maybe(40, {shared_rows, n}, ACL_BF16), *logit = tensors.maybe(50, {m}, ACL_FLOAT),
                  *rows = tensors.random({m}, chance(50) ? ACL_INT64 : ACL_INT32);
  aclTensor* y = tensors.output({batch, n}, ACL_FLOAT);
  const int64_t at = slip(5) ? one_of(kHuge) : pick(0, batch - shared_rows), type = slip(3) ? pick(-1, 2) : pick(0, 1);
  uint64_t size = 0;
  aclOpExecutor* executor = nullptr;
  if (offset == nullptr && chance(50)) {
    finish(aclnnGroupedMatmulFinalizeRoutingGetWorkspaceSize(x, weight, scale, bias, token, groups, shared, logit, rows,
                                                             0, 0.5f, at, false, false, type, y, &size, &executor),
           size, executor, aclnnGroupedMatmulFinalizeRouting);
  } else {
    finish(aclnnGroupedMatmulFinalizeRoutingV3GetWorkspaceSize(x, weight, scale, bias, offset, nullptr, nullptr, token,
                                                               groups, shared, logit, rows, 0, 0.5f, at, false, false,
                                                               type, nullptr, y, &size, &executor),
           size, executor, aclnnGroupedMatmulFinalizeRoutingV3);
  }
}

void compressed_matmul(Tensors& tensors) {
  const int64_t m = pick(1, 9), k = pick(1, 600), n = pick(1, 300), blocks = (k + 255) / 256 * ((n + 127) / 128);
  int64_t info[] = {8, 8, k, n, 1};
  if (slip(5)) info[pick(0, 4)] = one_of(kHuge);
  aclIntArray* array = aclCreateIntArray(info, slip(3) ? pick(0, 5) : 5);
  uint64_t size = 0;
  aclOpExecutor* executor = nullptr;
  const aclTensor *x = tensors.random({m, k}, ACL_INT8), *stream = tensors.random({pick(0, 4096)}, ACL_INT8),
                  *index = tensors.random({8 * blocks}, ACL_INT8), *bias = tensors.maybe(50, {1, n}, ACL_INT32),
                  *scale = tensors.random({1, chance(50) ? 1 : n}, chance(50) ? ACL_UINT64 : ACL_INT64);
  finish(aclnnMatmulCompressDequantGetWorkspaceSize(x, stream, index, bias, scale, nullptr, slip(3), array,
                                                    tensors.output({m, n}, ACL_FLOAT16), &size, &executor),
         size, executor, aclnnMatmulCompressDequant);
  destroy(array);
}

void moe_gating_topk(Tensors& tensors) {
  const aclDataType kX[] = {ACL_FLOAT16, ACL_BF16, ACL_FLOAT};
  const int64_t tokens = pick(0, 9), groups = pick(1, 5), own = pick(2, 12), experts = groups * own,
                kept = pick(1, groups), k = pick(1, kept * own);
  const aclDataType dtype = one_of(kX);
  const auto number = [](int64_t value) { return slip(3) ? one_of(kHuge) : value; };
  uint64_t size = 0;
  aclOpExecutor* executor = nullptr;
  const aclTensor *x = tensors.random({tokens, experts}, dtype), *bias = tensors.maybe(50, {experts}, dtype);
  aclTensor *y = tensors.output({tokens, k}, dtype), *ids = tensors.output({tokens, k}, ACL_INT32);
  finish(aclnnMoeGatingTopKGetWorkspaceSize(x, bias, number(k), number(kept), number(groups), number(pick(0, 1)),
                                            number(0), number(pick(0, 1)), chance(50), 2.5, 1e-20, y, ids,
                                            tensors.output({tokens, experts}, ACL_FLOAT), &size, &executor),
         size, executor, aclnnMoeGatingTopK);
}

void anti_quant(Tensors& tensors) {
  const aclDataType kX[] = {ACL_INT8, ACL_INT32, ACL_INT4}, kFactors[] = {ACL_FLOAT16, ACL_BF16, ACL_FLOAT};
  const int64_t rows = pick(1, 9), columns = pick(1, 9) * 8;
  const aclDataType dtype = one_of(kX), factor = one_of(kFactors), made = chance(50) ? ACL_FLOAT16 : ACL_BF16;
  const std::vector<int64_t> parameter = {chance(30) ? 1 : columns};
  uint64_t size = 0;
  aclOpExecutor* executor = nullptr;
  const aclTensor* x = tensors.random({rows, dtype == ACL_INT32 ? columns / 8 : columns}, dtype);
  const aclTensor *scale = tensors.random(parameter, factor), *offset = tensors.maybe(50, parameter, factor);
  finish(aclnnAscendAntiQuantGetWorkspaceSize(x, scale, offset, slip(5) ? one_of(kHuge) : int64_t{made}, slip(3),
                                              tensors.output({rows, columns}, made), &size, &executor),
         size, executor, aclnnAscendAntiQuant);
}

aclIntArray* lengths(int64_t count, int64_t most) {
  std::vector<int64_t> values(slip(5) ? pick(0, 5) : count);
  for (int64_t& value : values) value = slip(4) ? one_of(kHuge) : pick(most > 0 ? 1 : 0, most);
  return chance(20) ? nullptr : aclCreateIntArray(values.data(), values.size());
}

void prompts(Tensors& tensors) {
  const aclDataType kX[] = {ACL_FLOAT16, ACL_BF16, ACL_FLOAT};
  const aclDataType dtype = one_of(kX);
  const int64_t batch = pick(1, 3), rows = pick(1, 9), columns = pick(1, 40), kv_heads = pick(1, 2),
                heads = kv_heads * pick(1, 3), width = 8 * pick(1, 3), sparse = chance(50) ? 0 : pick(1, 4);
  const auto number = [](int64_t value) { return slip(3) ? one_of(kHuge) : value; };
  char bsnd[] = "BSND", odd[] = "TND";
  char* layout = slip(3) ? odd : bsnd;
  uint64_t size = 0;
  aclOpExecutor* executor = nullptr;
  const aclTensor *query = tensors.random({batch, rows, heads, width}, dtype),
                  *key = tensors.random({batch, columns, kv_heads, width}, dtype),
                  *value = tensors.random({batch, columns, kv_heads, width}, dtype),
                  *mask = sparse > 1 ? tensors.random({2048, 2048}, ACL_BOOL)
                                     : tensors.maybe(sparse == 1 ? 97 : 30, {batch, 1, rows, columns}, ACL_BOOL),
                  *none = slip(3) ? tensors.random({1}, ACL_FLOAT) : nullptr;
  aclIntArray *q_lengths = lengths(batch, rows), *kv_lengths = lengths(batch, columns);
  aclTensor* out = tensors.output({batch, rows, heads, width}, dtype);
  const int64_t before = chance(50) ? INT32_MAX : number(pick(-2, 9)), after = number(pick(-2, 9));
  if (chance(50)) {
    finish(aclnnPromptFlashAttentionV2GetWorkspaceSize(
               query, key, value, none, mask, q_lengths, kv_lengths, none, nullptr, nullptr, nullptr, nullptr,
               number(heads), 0.3, before, after, layout, number(kv_heads), number(sparse), out, &size, &executor),
           size, executor, aclnnPromptFlashAttentionV2);
  } else {
    finish(aclnnPromptFlashAttentionV3GetWorkspaceSize(query, key, value, none, mask, q_lengths, kv_lengths, nullptr,
                                                       nullptr, none, nullptr, nullptr, number(heads), 0.3, before,
                                                       after, layout, number(kv_heads), number(sparse), number(0), out,
                                                       &size, &executor),
           size, executor, aclnnPromptFlashAttentionV3);
  }
  for (aclIntArray* each : {q_lengths, kv_lengths}) {
    destroy(each);
  }
}

void attention(Tensors& tensors) {
  const aclDataType kX[] = {ACL_FLOAT16, ACL_BF16, ACL_FLOAT};
  const aclDataType dtype = one_of(kX);
  const bool codes = chance(50), paged = chance(30), by_head = chance(40), increment = chance(30);
  const int64_t batch = pick(1, 3), rows = increment || chance(40) ? 1 : pick(1, 9), kv_heads = pick(1, 2),
                heads = kv_heads * pick(1, 3), width = 8 * pick(1, 3), block = 16, blocks = pick(1, 3),
                columns = paged ? block * blocks : pick(1, 40);
  // The layout of tensors that are not in blocks.
  const auto shape = [&](int64_t tokens, int64_t count) {
    return by_head ? std::vector<int64_t>{batch, count, tokens, width}
                   : std::vector<int64_t>{batch, tokens, count, width};
  };
  const std::vector<int64_t> cache =
      paged ? std::vector<int64_t>{pick(1, 4), block, kv_heads * width} : shape(columns, kv_heads);
  char bsnd[] = "BSND", bnsd[] = "BNSD", odd[] = "odd";
  char* layout = slip(3) ? odd : by_head ? bnsd : bsnd;
  const auto number = [](int64_t value) { return slip(3) ? one_of(kHuge) : value; };
  const int64_t channels = kv_heads * width, mode = codes && !increment && chance(30) ? 2 : 0;
  const std::vector<int64_t> factors = {mode == 2 ? kv_heads : channels};
  const bool stacked = increment || chance(50);
  uint64_t size = 0;
  aclOpExecutor* executor = nullptr;
  const aclTensor* query = tensors.random(shape(rows, heads), dtype);
  aclTensorList* key = tensors.list({cache}, codes ? ACL_INT8 : dtype);
  aclTensorList* value = tensors.list({cache}, codes ? ACL_INT8 : dtype);
  const int sparse = increment || chance(50) ? 0 : static_cast<int>(pick(1, 4));
  const aclTensor* mask = sparse > 1
                              ? tensors.random({2048, 2048}, ACL_BOOL)
                              : tensors.maybe(sparse == 1 ? 97 : 30, {rows == 1 ? batch : rows, columns}, ACL_BOOL);
  const aclTensor *none = slip(3) ? tensors.random({1}, ACL_FLOAT) : nullptr,
                  *table = paged ? tensors.random({batch, blocks}, ACL_INT32) : nullptr;
  aclIntArray *q_lengths = lengths(batch, rows), *kv_lengths = lengths(batch, columns);
  const std::vector<int64_t> pair = {2, factors[0]};
  const aclTensor *scales = codes && stacked ? tensors.random(pair, dtype) : nullptr,
                  *offsets = codes && stacked ? tensors.maybe(50, pair, dtype) : nullptr;
  aclTensor* out = tensors.output(shape(rows, heads), dtype);
  if (increment) {
    finish(aclnnIncreFlashAttentionV4GetWorkspaceSize(
               query, key, value, none, mask, kv_lengths, nullptr, none, nullptr, nullptr, nullptr, scales, offsets,
               table, none, number(heads), 0.3, layout, number(kv_heads), number(block), 1, out, &size, &executor),
           size, executor, aclnnIncreFlashAttentionV4);
  } else {
    const auto factor = [&](int percent) {
      return codes && !stacked ? tensors.maybe(percent, factors, dtype) : nullptr;
    };
    const aclTensor *key_scale = factor(97), *key_offset = factor(50), *value_scale = factor(97),
                    *value_offset = factor(50);
    const bool with_lse = chance(30), rope = !codes && !paged && chance(30);
    aclTensor* lse = tensors.output({batch, heads, rows, 1}, ACL_FLOAT);
    const aclTensor *q_rope = rope ? tensors.random(shape(rows, heads), dtype) : nullptr,
                    *k_rope = rope ? tensors.random(shape(columns, kv_heads), dtype) : nullptr;
    const int64_t before = chance(50) ? INT32_MAX : number(pick(-2, 9)), after = number(pick(-2, 9));
    if (chance(50)) {
      finish(aclnnFusedInferAttentionScoreV2GetWorkspaceSize(
                 query, key, value, none, mask, q_lengths, kv_lengths, nullptr, nullptr, nullptr, nullptr, nullptr,
                 scales, offsets, table, nullptr, nullptr, key_scale, key_offset, value_scale, value_offset, nullptr,
                 none, nullptr, number(heads), 0.3, before, after, layout, number(kv_heads), number(sparse), 0,
                 number(block), number(0), with_lse, number(mode), number(mode), out, lse, &size, &executor),
             size, executor, aclnnFusedInferAttentionScoreV2);
    } else {
      finish(aclnnFusedInferAttentionScoreV3GetWorkspaceSize(
                 query, key, value, none, mask, q_lengths, kv_lengths, nullptr, nullptr, nullptr, nullptr, nullptr,
                 scales, offsets, table, nullptr, nullptr, key_scale, key_offset, value_scale, value_offset, nullptr,
                 none, nullptr, q_rope, k_rope, none, number(heads), 0.3, before, after, layout, number(kv_heads),
                 number(sparse), 0, number(block), number(0), with_lse, number(mode), number(mode), out, lse, &size,
                 &executor),
             size, executor, aclnnFusedInferAttentionScoreV3);
    }
  }
  for (aclTensorList* each : {key, value}) aclDestroyTensorList(each);
  for (aclIntArray* each : {q_lengths, kv_lengths}) {
    destroy(each);
  }
}

void float_elementwise(Tensors& tensors) {
  const aclDataType kX[] = {ACL_FLOAT16, ACL_BF16, ACL_FLOAT};
  std::vector<int64_t> shape(pick(0, 4));
  for (int64_t& size : shape) size = pick(0, 9);
  std::vector<int64_t> other(shape.begin() + (shape.empty() ? 0 : pick(0, shape.size())), shape.end());
  for (int64_t& size : other) size = chance(30) ? 1 : size;
  uint64_t size = 0;
  aclOpExecutor* executor = nullptr;
  const aclTensor *x1 = tensors.random(shape, one_of(kX)), *x2 = tensors.random(other, one_of(kX));
  aclTensor* out = tensors.output(shape, one_of(kX));
  double value = 2;
  const aclScalar* alpha = slip(5) ? nullptr : aclCreateScalar(&value, slip(5) ? one_of(kDtypes) : ACL_DOUBLE);
  const aclScalar* number = slip(5) ? nullptr : alpha;
  switch (pick(0, 10)) {
    case 0: finish(aclnnAddGetWorkspaceSize(x1, x2, alpha, out, &size, &executor), size, executor, aclnnAdd); break;
    case 1:
      finish(aclnnInplaceAddGetWorkspaceSize(out, x2, alpha, &size, &executor), size, executor, aclnnInplaceAdd);
      break;
    case 2: finish(aclnnMulGetWorkspaceSize(x1, x2, out, &size, &executor), size, executor, aclnnMul); break;
    case 3: finish(aclnnInplaceMulGetWorkspaceSize(out, x2, &size, &executor), size, executor, aclnnInplaceMul); break;
    case 4:
      finish(aclnnAddsGetWorkspaceSize(x1, number, alpha, out, &size, &executor), size, executor, aclnnAdds);
      break;
    case 5: finish(aclnnSubGetWorkspaceSize(x1, x2, alpha, out, &size, &executor), size, executor, aclnnSub); break;
    case 6: finish(aclnnDivGetWorkspaceSize(x1, x2, out, &size, &executor), size, executor, aclnnDiv); break;
    case 7: finish(aclnnMulsGetWorkspaceSize(x1, number, out, &size, &executor), size, executor, aclnnMuls); break;
    case 8:
      finish(aclnnInplaceDivsGetWorkspaceSize(out, number, &size, &executor), size, executor, aclnnInplaceDivs);
      break;
    case 9: finish(aclnnInplaceDivGetWorkspaceSize(out, x2, &size, &executor), size, executor, aclnnInplaceDiv); break;
    default: finish(aclnnSiluGetWorkspaceSize(x1, out, &size, &executor), size, executor, aclnnSilu);
  }
  if (alpha != nullptr) aclDestroyScalar(alpha);
}

void rms_norm(Tensors& tensors) {
  const aclDataType kX[] = {ACL_FLOAT16, ACL_BF16, ACL_FLOAT};
  const aclDataType dtype = one_of(kX);
  const int64_t batch = pick(0, 4), rows = pick(1, 5), width = pick(0, 70);
  const std::vector<int64_t> shape = {batch, rows, width};
  const bool two = chance(30);
  uint64_t size = 0;
  aclOpExecutor* executor = nullptr;
  const aclTensor *x1 = tensors.random(shape, dtype), *x2 = tensors.random(shape, dtype);
  const aclTensor* gamma = tensors.random(two ? std::vector<int64_t>{rows, width} : std::vector<int64_t>{width}, dtype);
  aclTensor *y = tensors.output(shape, dtype), *x = tensors.output(shape, dtype);
  aclTensor* rstd = tensors.output({batch, two ? 1 : rows, 1}, ACL_FLOAT);
  if (chance(50)) {
    finish(aclnnRmsNormGetWorkspaceSize(x1, gamma, 1e-5, y, rstd, &size, &executor), size, executor, aclnnRmsNorm);
  } else {
    finish(aclnnAddRmsNormGetWorkspaceSize(x1, x2, gamma, 1e-5, y, rstd, x, &size, &executor), size, executor,
           aclnnAddRmsNorm);
  }
}

void float_matmul(Tensors& tensors) {
  const aclDataType kX[] = {ACL_FLOAT16, ACL_BF16, ACL_FLOAT};
  const aclDataType dtype = one_of(kX);
  const int64_t batch = pick(1, 3), m = pick(0, 9), k = pick(0, 40), n = pick(0, 80);
  const bool batched = chance(40), common = chance(50);
  uint64_t size = 0;
  aclOpExecutor* executor = nullptr;
  using Shape = std::vector<int64_t>;
  const aclTensor* x1 = tensors.random(batched ? Shape{batch, m, k} : Shape{m, k}, dtype);
  const aclTensor* x2 = tensors.random(batched && !common ? Shape{batch, k, n} : Shape{k, n}, dtype);
  aclTensor* y = tensors.output(batched ? Shape{batch, m, n} : Shape{m, n}, dtype);
  const auto type = static_cast<int8_t>(slip(5) ? pick(-128, 127) : pick(0, 3));
  if (batched || chance(50)) {
    finish(aclnnMatmulGetWorkspaceSize(x1, x2, y, type, &size, &executor), size, executor, aclnnMatmul);
  } else {
    finish(aclnnMmGetWorkspaceSize(x1, x2, y, type, &size, &executor), size, executor, aclnnMm);
  }
}

void formats(Tensors& tensors) {
  const aclDataType dtype = chance(60) ? ACL_FLOAT16 : one_of(kDtypes);
  const int64_t rows = pick(0, 40), columns = pick(0, 80);
  uint64_t size = 0;
  aclOpExecutor* executor = nullptr;
  const aclTensor* x = tensors.random({rows, columns}, dtype);
  int64_t *shape = nullptr, axes[] = {slip(5) ? one_of(kHuge) : rows, columns};
  uint64_t count = 0;
  int format = slip(10) ? static_cast<int>(pick(-1, 60)) : 29;
  switch (pick(0, 2)) {
    case 0: {
      if (aclnnNpuFormatCastCalculateSizeAndFormat(x, format, -1, &shape, &count, &format) != ACLNN_SUCCESS) return;
      int64_t *own = nullptr, *strides = nullptr;
      EXPECT(aclGetViewShape(x, &own, &size) == ACL_SUCCESS || kFailing);
      EXPECT(aclGetViewStrides(x, &strides, &size) == ACL_SUCCESS || kFailing);
      aclTensor* y = aclCreateTensor(own, size, dtype, strides, 0, static_cast<aclFormat>(format), shape, count,
                                     tensors.address(false));
      if (y != nullptr) tensors.made.push_back(y);
      size = 0;
      const bool back = chance(50);
      finish(aclnnNpuFormatCastGetWorkspaceSize(back ? y : x, back ? const_cast<aclTensor*>(x) : y, &size, &executor),
             size, executor, aclnnNpuFormatCast);
      for (int64_t* each : {shape, own, strides}) delete[] each;
      break;
    }
    case 1: {
      aclIntArray* array = aclCreateIntArray(axes, slip(5) ? 1 : 2);
      if (aclnnCalculateMatmulWeightSizeV2(array, dtype, &count) == ACLNN_SUCCESS) EXPECT(count < INT64_MAX);
      destroy(array);
      finish(aclnnTransMatmulWeightGetWorkspaceSize(const_cast<aclTensor*>(x), &size, &executor), size, executor,
             aclnnTransMatmulWeight);
      break;
    }
    default: {
      std::vector<float> scales(pick(0, 9), 0.5f), offsets(pick(0, 9), 3.0f);
      uint64_t* words = nullptr;
      const bool with_offset = chance(50);
      const int status =
          aclnnTransQuantParam(slip(5) ? nullptr : scales.data(), scales.size(), with_offset ? offsets.data() : nullptr,
                               with_offset || slip(5) ? offsets.size() : 0, &words, &count);
      EXPECT((status == ACLNN_SUCCESS) == (words != nullptr));
      delete[] words;
    }
  }
}

void moves(Tensors& tensors) {
  const aclDataType dtype = one_of(kDtypes);
  const int64_t rows = pick(0, 5), columns = pick(0, 6), axis = slip(5) ? one_of(kHuge) : pick(-2, 1);
  const bool of_rows = axis == 0 || axis == -2;
  const int64_t count = pick(0, 4);
  using Shape = std::vector<int64_t>;
  const aclDataType whole = chance(50) ? ACL_INT64 : ACL_INT32;
  uint64_t size = 0;
  aclOpExecutor* executor = nullptr;
  const aclTensor *x = tensors.random({rows, columns}, dtype), *index = tensors.random({count}, whole);
  aclTensor* chosen = tensors.output(of_rows ? Shape{count, columns} : Shape{rows, count}, dtype);
  switch (pick(0, 4)) {
    case 0: {
      const int64_t axes[] = {slip(10) ? pick(-3, 3) : 1, 0};
      aclIntArray* dims = aclCreateIntArray(axes, slip(5) ? 1 : 2);
      aclTensor* out = tensors.output({columns, rows}, dtype);
      finish(aclnnPermuteGetWorkspaceSize(x, slip(3) ? nullptr : dims, out, &size, &executor), size, executor,
             aclnnPermute);
      destroy(dims);
      break;
    }
    case 1: {
      aclTensorList* list = tensors.list({{rows, columns}}, dtype);
      finish(aclnnCatGetWorkspaceSize(list, axis, tensors.output({rows, columns}, dtype), &size, &executor), size,
             executor, aclnnCat);
      if (list != nullptr) EXPECT_OK(aclDestroyTensorList(list));
      break;
    }
    case 2:
      finish(aclnnIndexSelectGetWorkspaceSize(x, axis, index, chosen, &size, &executor), size, executor,
             aclnnIndexSelect);
      break;
    case 3:
      finish(aclnnEmbeddingGetWorkspaceSize(x, index, chosen, &size, &executor), size, executor, aclnnEmbedding);
      break;
    default: finish(aclnnInplaceCopyGetWorkspaceSize(chosen, x, &size, &executor), size, executor, aclnnInplaceCopy);
  }
}

void next_token(Tensors& tensors) {
  const aclDataType kX[] = {ACL_FLOAT16, ACL_BF16, ACL_FLOAT};
  const aclDataType dtype = one_of(kX);
  const int64_t rows = pick(0, 5), columns = pick(1, 60), k = slip(5) ? one_of(kHuge) : pick(0, columns);
  const int64_t axis = slip(5) ? one_of(kHuge) : 1;
  uint64_t size = 0;
  aclOpExecutor* executor = nullptr;
  const aclTensor* x = tensors.random({rows, columns}, dtype);
  switch (pick(0, 2)) {
    case 0:
      finish(aclnnSoftmaxGetWorkspaceSize(x, axis, tensors.output({rows, columns}, dtype), &size, &executor), size,
             executor, aclnnSoftmax);
      break;
    case 1:
      finish(aclnnTopkGetWorkspaceSize(x, k, axis, chance(50), true, tensors.output({rows, k % 64}, dtype),
                                       tensors.output({rows, k % 64}, ACL_INT64), &size, &executor),
             size, executor, aclnnTopk);
      break;
    default:
      finish(aclnnArgMaxGetWorkspaceSize(x, axis, slip(5), tensors.output({rows}, ACL_INT64), &size, &executor), size,
             executor, aclnnArgMax);
  }
}

void rotations(Tensors& tensors) {
  const aclDataType kX[] = {ACL_FLOAT16, ACL_BF16, ACL_FLOAT};
  const aclDataType dtype = one_of(kX);
  const int64_t rows = pick(0, 4), heads = pick(1, 3), width = 2 * pick(0, 9), layout = slip(5) ? pick(-1, 9) : 4;
  uint64_t size = 0;
  aclOpExecutor* executor = nullptr;
  aclTensor *q = tensors.output({rows, heads, width}, dtype), *k = tensors.output({rows, 1, width}, dtype);
  const aclTensor *cos = tensors.random({rows, 1, width}, dtype), *sin = tensors.random({rows, 1, width}, dtype);
  char half[] = "half", interleave[] = "interleave", odd[] = "odd";
  char* mode = slip(5) ? odd : chance(50) ? half : interleave;
  switch (pick(0, 2)) {
    case 0:
      finish(aclnnApplyRotaryPosEmbGetWorkspaceSize(q, k, cos, sin, layout, &size, &executor), size, executor,
             aclnnApplyRotaryPosEmb);
      break;
    case 1:
      finish(aclnnApplyRotaryPosEmbV2GetWorkspaceSize(q, k, cos, sin, layout, mode, &size, &executor), size, executor,
             aclnnApplyRotaryPosEmbV2);
      break;
    default: {
      aclTensor* out = tensors.output({rows, heads, width}, dtype);
      finish(aclnnRotaryPositionEmbeddingGetWorkspaceSize(q, cos, sin, slip(5) ? 2 : pick(0, 1), out, &size, &executor),
             size, executor, aclnnRotaryPositionEmbedding);
    }
  }
}

void trans_quant_param(Tensors& tensors) {
  const int64_t n = pick(1, 40);
  uint64_t size = 0;
  aclOpExecutor* executor = nullptr;
  const aclTensor* scale = tensors.random({n}, ACL_FLOAT);
  const aclTensor* offset = tensors.maybe(50, {n}, ACL_FLOAT);
  const aclTensor* out = tensors.random({n}, chance(50) ? ACL_INT64 : ACL_UINT64);
  if (chance(50)) {
    finish(aclnnTransQuantParamV2GetWorkspaceSize(scale, offset, out, &size, &executor), size, executor,
           aclnnTransQuantParamV2);
  } else {
    const int64_t mode = slip(10) ? one_of(kHuge) : pick(0, 1);
    finish(aclnnTransQuantParamV3GetWorkspaceSize(scale, offset, mode, out, &size, &executor), size, executor,
           aclnnTransQuantParamV3);
  }
}

void quantize(Tensors& tensors) {
  const aclDataType kX[] = {ACL_FLOAT16, ACL_BF16, ACL_FLOAT}, kY[] = {ACL_INT8, ACL_UINT8, ACL_INT32, ACL_INT4};
  const int64_t rows = pick(1, 9), columns = pick(1, 9) * 8;
  const aclDataType x_dtype = one_of(kX), y_dtype = one_of(kY);
  const int32_t axis = static_cast<int32_t>(slip(10) ? pick(INT32_MIN, INT32_MAX) : pick(-2, 1));
  const std::vector<int64_t> parameter = {chance(30) ? 1 : axis == 0 || axis == -2 ? rows : columns};
  uint64_t size = 0;
  aclOpExecutor* executor = nullptr;
  const aclTensor* x = tensors.random({rows, columns}, x_dtype);
  const aclTensor* scale = tensors.random(parameter, chance(50) ? ACL_FLOAT : x_dtype);
  const aclTensor* offset = tensors.maybe(50, parameter, chance(50) ? ACL_FLOAT : x_dtype);
  aclTensor* y = tensors.output({rows, columns}, y_dtype);
  const char* const kModes[] = {"round", "floor", "", nullptr};
  const char* mode = slip(10) ? one_of(kModes) : "round";
  if (chance(50)) {
    finish(aclnnQuantizeGetWorkspaceSize(x, scale, offset, y_dtype, axis, y, &size, &executor), size, executor,
           aclnnQuantize);
  } else if (chance(50)) {
    finish(aclnnAscendQuantGetWorkspaceSize(x, scale, offset, slip(3), mode, y_dtype, y, &size, &executor), size,
           executor, aclnnAscendQuant);
  } else {
    finish(aclnnAscendQuantV3GetWorkspaceSize(x, scale, offset, slip(3), mode, y_dtype, axis, y, &size, &executor),
           size, executor, aclnnAscendQuantV3);
  }
}

void rope(Tensors& tensors) {
  const int64_t batch = pick(1, 3), length = pick(1, 3), heads = pick(1, 3), kv_heads = pick(1, 2),
                width = 2 * pick(1, 9);
  const int64_t total = (heads + 2 * kv_heads) * width, planes = batch + pick(0, 1), rows = length + pick(0, 3);
  const aclDataType kFloats[] = {ACL_FLOAT16, ACL_BF16, ACL_FLOAT};
  const aclDataType dtype = one_of(kFloats);
  const bool integer = chance(50), flat = chance(30), paged = chance(50);
  const int64_t tokens = flat ? batch : batch * length;
  std::vector<int64_t> splits = {heads * width, kv_heads * width, kv_heads * width};
  if (slip(4)) splits[pick(0, 2)] = chance(50) ? pick(-64, 64) : one_of(kHuge);
  if (slip(2)) splits.resize(pick(0, 5));
  aclIntArray* array = aclCreateIntArray(splits.data(), splits.size());
  char mode[] = "static", layout[] = "BSND", page[] = "page", contiguous[] = "contiguous", odd[] = "odd";
  const auto x_shape = flat ? std::vector<int64_t>{batch, total} : std::vector<int64_t>{batch, length, total};
  const auto angle = flat ? std::vector<int64_t>{batch, width} : std::vector<int64_t>{batch, length, 1, width};
  const auto head = [&](int64_t count) {
    return flat ? std::vector<int64_t>{batch, count, width} : std::vector<int64_t>{batch, length, count, width};
  };
  uint64_t size = 0;
  aclOpExecutor* executor = nullptr;
  const aclTensor* x = tensors.random(x_shape, integer ? ACL_INT32 : dtype);
  const aclTensor *cos = tensors.random(angle, dtype), *sin = tensors.random(angle, dtype);
  aclTensor *k_cache = tensors.output({planes, rows, kv_heads, width}, ACL_INT8),
            *v_cache = tensors.output({planes, rows, kv_heads, width}, ACL_INT8);
  const aclTensor* indices = tensors.random({paged ? tokens : batch}, ACL_INT32);
  const std::vector<int64_t> parameter = {kv_heads, width};
  const aclTensor *scale_k = tensors.random(parameter, ACL_FLOAT), *scale_v = tensors.random(parameter, ACL_FLOAT);
  const aclTensor *offset_k = tensors.maybe(30, parameter, ACL_FLOAT),
                  *offset_v = tensors.maybe(30, parameter, ACL_FLOAT);
  const aclTensor* weight_scale = tensors.maybe(integer ? 97 : 20, {total}, ACL_FLOAT);
  const aclTensor* activation_scale = tensors.maybe(40, {tokens}, ACL_FLOAT);
  const aclTensor* bias = tensors.maybe(40, {total}, chance(50) ? ACL_INT32 : ACL_FLOAT);
  aclTensor *q = tensors.output(head(heads), dtype), *k = tensors.output(head(kv_heads), dtype),
            *v = tensors.output(head(kv_heads), dtype);
  const int status = aclnnDequantRopeQuantKvcacheGetWorkspaceSize(
      x, cos, sin, k_cache, v_cache, indices, scale_k, scale_v, offset_k, offset_v, weight_scale, activation_scale,
      bias, slip(2) ? nullptr : array, slip(5) ? odd : mode, slip(5) ? odd : layout, chance(50),
      paged     ? page
      : slip(5) ? odd
                : contiguous,
      q, k, v, &size, &executor);
  finish(status, size, executor, aclnnDequantRopeQuantKvcache);
  destroy(array);
}

}  // namespace

int main(int count, char** arguments) {
  const double seconds = count > 1 ? std::atof(arguments[1]) : 1;
  const uint64_t seed = count > 2 ? std::strtoull(arguments[2], nullptr, 10) : 1;
  generator.seed(seed);
  Session session;
  void (*const kTargets[])(Tensors&) = {int4_pack,
                                        cast,
                                        matmul,
                                        quant_matmul,
                                        dynamic_quant,
                                        dequant_swiglu_quant,
                                        swiglu,
                                        moe_init_routing,
                                        moe_tokens,
                                        moe_finalize_routing,
                                        moe_gating_topk_softmax,
                                        grouped_matmul,
                                        grouped_matmul_combine,
                                        compressed_matmul,
                                        moe_gating_topk,
                                        anti_quant,
                                        prompts,
                                        attention,
                                        float_elementwise,
                                        rms_norm,
                                        float_matmul,
                                        formats,
                                        moves,
                                        next_token,
                                        rotations,
                                        trans_quant_param,
                                        quantize,
                                        rope};
  const auto start = std::chrono::steady_clock::now();
  while (std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() < seconds) {
    Pool pool;
    for (int i = 0; i < 50; ++i) {
      Tensors tensors(pool);
      wrong = chance(60);
      if (kFailing) fail_allocations(pick(0, 99), chance(50));
      one_of(kTargets)(tensors);
      if (kFailing) fail_allocations(-1, false);
    }
  }
  std::printf("ok: seed %" PRIu64 ", %" PRId64 " calls, %" PRId64 " launched, %" PRId64 " without error\n", seed, calls,
              launched, passed);
  return 0;
}
