// SPDX-License-Identifier: Apache-2.0
#include "acl/executor/executor.h"
#include "aclnnop/aclnn_moe_gating_top_k_softmax.h"
#include "aclnnop/aclnn_moe_gating_top_k_softmax_v2.h"
#include "core/tensor.h"

namespace {

using Args = anynpu_moe_gating_topk_softmax_args;
using Stage = anynpu::acl::FirstStage<Args>;

constexpr anynpu::acl::Operator version(const char* name) {
  return anynpu::acl::make_operator<Args, anynpu_moe_gating_topk_softmax_check, anynpu_moe_gating_topk_softmax>(
      name, anynpu::acl::Views::copied);
}

constexpr auto kV1 = version("aclnnMoeGatingTopKSoftmax");
constexpr auto kV2 = version("aclnnMoeGatingTopKSoftmaxV2");

// What both versions have.
void take(Stage& stage, const aclTensor* x, const aclTensor* finished, const aclTensor* y, const aclTensor* experts) {
  stage.input("x", x, &Args::x);
  stage.optional("finishedOptional", finished, &Args::finished);
  stage.output("yOut", y, &Args::y);
  stage.output("expertIdxOut", experts, &Args::expert_idx);
}

// The kernel reads k from the shape of yOut.
void check_k(Stage& stage, int64_t k) {
  if (!stage.ok()) return;
  const anynpu_tensor& made = stage.args.y;
  stage.require(made.ndim == 0 || made.shape[made.ndim - 1] == k, "k is %lld, but yOut has shape %s", anynpu::wide(k),
                anynpu::shape_text(made));
}

}  // namespace

extern "C" aclnnStatus aclnnMoeGatingTopKSoftmaxGetWorkspaceSize(const aclTensor* x, const aclTensor* finishedOptional,
                                                                 int64_t k, const aclTensor* yOut,
                                                                 const aclTensor* expertIdxOut,
                                                                 const aclTensor* rowIdxOut, uint64_t* workspaceSize,
                                                                 aclOpExecutor** executor) {
  return anynpu::acl::first_stage<Args>(kV1, workspaceSize, executor, [&](Stage& stage) {
    take(stage, x, finishedOptional, yOut, expertIdxOut);
    stage.output("rowIdxOut", rowIdxOut, &Args::row_idx);
    check_k(stage, k);
  });
}

ANYNPU_SECOND_STAGE(aclnnMoeGatingTopKSoftmax, kV1)

extern "C" aclnnStatus aclnnMoeGatingTopKSoftmaxV2GetWorkspaceSize(const aclTensor* x,
                                                                   const aclTensor* finishedOptional, int64_t k,
                                                                   int64_t renorm, bool outputSoftmaxResultFlag,
                                                                   const aclTensor* yOut, const aclTensor* expertIdxOut,
                                                                   const aclTensor* softmaxOutOptional,
                                                                   uint64_t* workspaceSize, aclOpExecutor** executor) {
  return anynpu::acl::first_stage<Args>(kV2, workspaceSize, executor, [&](Stage& stage) {
    take(stage, x, finishedOptional, yOut, expertIdxOut);
    stage.args.renorm = renorm;
    if (outputSoftmaxResultFlag && renorm == 0) {
      stage.output("softmaxOutOptional", softmaxOutOptional, &Args::softmax);
    } else {
      stage.unused("softmaxOutOptional", softmaxOutOptional);
    }
    check_k(stage, k);
  });
}

ANYNPU_SECOND_STAGE(aclnnMoeGatingTopKSoftmaxV2, kV2)
