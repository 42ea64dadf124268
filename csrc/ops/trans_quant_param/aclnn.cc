// SPDX-License-Identifier: Apache-2.0
#include "acl/executor/executor.h"
#include "aclnnop/aclnn_trans_quant_param_v2.h"
#include "aclnnop/aclnn_trans_quant_param_v3.h"

namespace {

using Args = anynpu_trans_quant_param_args;
using Stage = anynpu::acl::FirstStage<Args>;

constexpr auto kV2 = anynpu::acl::make_operator<Args, anynpu_trans_quant_param_check, anynpu_trans_quant_param>(
    "aclnnTransQuantParamV2");
constexpr auto kV3 = anynpu::acl::make_operator<Args, anynpu_trans_quant_param_check, anynpu_trans_quant_param>(
    "aclnnTransQuantParamV3");

aclnnStatus first_stage(const anynpu::acl::Operator& op, const aclTensor* scale, const aclTensor* offset,
                        int64_t round_mode, const aclTensor* out, uint64_t* workspace_size, aclOpExecutor** executor) {
  return anynpu::acl::first_stage<Args>(op, workspace_size, executor, [&](Stage& stage) {
    stage.input("scale", scale, &Args::scale);
    stage.optional("offset", offset, &Args::offset);
    stage.output("out", out, &Args::param);
    stage.require(round_mode == 0 || round_mode == 1, "trans_quant_param: round_mode must be 0 or 1, got %lld",
                  static_cast<long long>(round_mode));
    stage.args.round_mode = static_cast<int32_t>(round_mode);
  });
}

}  // namespace

extern "C" aclnnStatus aclnnTransQuantParamV2GetWorkspaceSize(const aclTensor* scale, const aclTensor* offset,
                                                              const aclTensor* out, uint64_t* workspaceSize,
                                                              aclOpExecutor** executor) {
  return first_stage(kV2, scale, offset, 0, out, workspaceSize, executor);
}

extern "C" aclnnStatus aclnnTransQuantParamV2(void* workspace, uint64_t workspaceSize, aclOpExecutor* executor,
                                              aclrtStream stream) {
  return launch(kV2, workspace, workspaceSize, executor, stream);
}

extern "C" aclnnStatus aclnnTransQuantParamV3GetWorkspaceSize(const aclTensor* scale, const aclTensor* offset,
                                                              int64_t roundMode, const aclTensor* out,
                                                              uint64_t* workspaceSize, aclOpExecutor** executor) {
  return first_stage(kV3, scale, offset, roundMode, out, workspaceSize, executor);
}

extern "C" aclnnStatus aclnnTransQuantParamV3(void* workspace, uint64_t workspaceSize, aclOpExecutor* executor,
                                              aclrtStream stream) {
  return launch(kV3, workspace, workspaceSize, executor, stream);
}
