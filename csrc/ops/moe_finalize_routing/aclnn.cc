// SPDX-License-Identifier: Apache-2.0
#include "acl/executor/executor.h"
#include "aclnnop/aclnn_moe_finalize_routing.h"
#include "aclnnop/aclnn_moe_finalize_routing_v2.h"

namespace {

using Args = anynpu_moe_finalize_routing_args;
using Stage = anynpu::acl::FirstStage<Args>;

constexpr anynpu::acl::Operator version(const char* name) {
  return anynpu::acl::make_operator<Args, anynpu_moe_finalize_routing_check, anynpu_moe_finalize_routing>(
      name, anynpu::acl::Views::copied);
}

constexpr auto kV1 = version("aclnnMoeFinalizeRouting");
constexpr auto kV2 = version("aclnnMoeFinalizeRoutingV2");

}  // namespace

extern "C" aclnnStatus aclnnMoeFinalizeRoutingGetWorkspaceSize(const aclTensor* expandedX, const aclTensor* x1,
                                                               const aclTensor* x2Optional, const aclTensor* bias,
                                                               const aclTensor* scales, const aclTensor* expandedRowIdx,
                                                               const aclTensor* expandedExpertIdx, const aclTensor* out,
                                                               uint64_t* workspaceSize, aclOpExecutor** executor) {
  return anynpu::acl::first_stage<Args>(kV1, workspaceSize, executor, [&](Stage& stage) {
    stage.input("expandedX", expandedX, &Args::expanded_rows);
    stage.input("x1", x1, &Args::skip1);
    stage.optional("x2Optional", x2Optional, &Args::skip2);
    stage.input("bias", bias, &Args::bias);
    stage.input("scales", scales, &Args::scales);
    stage.input("expandedRowIdx", expandedRowIdx, &Args::row_idx);
    stage.input("expandedExpertIdx", expandedExpertIdx, &Args::expert_idx);
    stage.output("out", out, &Args::y);
  });
}

ANYNPU_SECOND_STAGE(aclnnMoeFinalizeRouting, kV1)

extern "C" aclnnStatus aclnnMoeFinalizeRoutingV2GetWorkspaceSize(
    const aclTensor* expandedX, const aclTensor* expandedRowIdx, const aclTensor* x1Optional,
    const aclTensor* x2Optional, const aclTensor* biasOptional, const aclTensor* scalesOptional,
    const aclTensor* expertIdxOptional, int64_t dropPadMode, const aclTensor* out, uint64_t* workspaceSize,
    aclOpExecutor** executor) {
  return anynpu::acl::first_stage<Args>(kV2, workspaceSize, executor, [&](Stage& stage) {
    stage.input("expandedX", expandedX, &Args::expanded_rows);
    stage.input("expandedRowIdx", expandedRowIdx, &Args::row_idx);
    stage.optional("x1Optional", x1Optional, &Args::skip1);
    stage.optional("x2Optional", x2Optional, &Args::skip2);
    stage.optional("biasOptional", biasOptional, &Args::bias);
    stage.optional("scalesOptional", scalesOptional, &Args::scales);
    stage.optional("expertIdxOptional", expertIdxOptional, &Args::expert_idx);
    stage.output("out", out, &Args::y);
    stage.args.drop_pad_mode = dropPadMode;
  });
}

ANYNPU_SECOND_STAGE(aclnnMoeFinalizeRoutingV2, kV2)
