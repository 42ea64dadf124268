// SPDX-License-Identifier: Apache-2.0
#include "acl/executor/executor.h"
#include "aclnnop/aclnn_moe_gating_top_k.h"
#include "core/tensor.h"

namespace {

using anynpu::wide;
using Args = anynpu_moe_gating_topk_args;
using Stage = anynpu::acl::FirstStage<Args>;

constexpr auto kMoeGatingTopK = anynpu::acl::make_operator<Args, anynpu_moe_gating_topk_check, anynpu_moe_gating_topk>(
    "aclnnMoeGatingTopK", anynpu::acl::Views::copied);

// The struct has 32 bits for a mode; values that do not fit are none of its modes.
int32_t narrowed(int64_t mode) { return mode == static_cast<int32_t>(mode) ? static_cast<int32_t>(mode) : INT32_MIN; }

// The document's limits of Atlas A2.
void limit(Stage& stage) {
  if (!stage.ok() || stage.args.x.ndim != 2 || stage.args.group_count < 1) return;
  const int64_t experts = stage.args.x.shape[1], groups = stage.args.group_count;
  stage.limit(experts <= 2048, "wants E <= 2048, got %lld", wide(experts));
  stage.limit(experts / groups > 2, "wants groups of more than 2 experts, got %lld", wide(experts / groups));
}

}  // namespace

extern "C" aclnnStatus aclnnMoeGatingTopKGetWorkspaceSize(const aclTensor* x, const aclTensor* biasOptional, int64_t k,
                                                          int64_t kGroup, int64_t groupCount, int64_t groupSelectMode,
                                                          int64_t renorm, int64_t normType, bool outFlag,
                                                          double routedScalingFactor, double eps, const aclTensor* yOut,
                                                          const aclTensor* expertIdxOut, const aclTensor* outOut,
                                                          uint64_t* workspaceSize, aclOpExecutor** executor) {
  return anynpu::acl::first_stage<Args>(kMoeGatingTopK, workspaceSize, executor, [&](Stage& stage) {
    stage.input("x", x, &Args::x);
    stage.optional("biasOptional", biasOptional, &Args::bias);
    stage.output("yOut", yOut, &Args::y);
    stage.output("expertIdxOut", expertIdxOut, &Args::expert_idx);
    if (outFlag) {
      stage.output("outOut", outOut, &Args::scores);
    } else {
      stage.unused("outOut", outOut);
    }
    stage.require(renorm == 0, "renorm %lld is not documented, 0 is implemented", wide(renorm));
    const anynpu_tensor& y = stage.args.y;
    stage.require(y.ndim != 2 || y.shape[1] == k, "k is %lld, but yOut has shape %s", wide(k), anynpu::shape_text(y));
    stage.args.k_group = kGroup;
    stage.args.group_count = groupCount;
    stage.args.group_select_mode = narrowed(groupSelectMode);
    stage.args.norm_type = narrowed(normType);
    stage.args.routed_scaling_factor = static_cast<float>(routedScalingFactor);
    stage.args.eps = static_cast<float>(eps);
    limit(stage);
  });
}

ANYNPU_SECOND_STAGE(aclnnMoeGatingTopK, kMoeGatingTopK)
