// SPDX-License-Identifier: Apache-2.0
#include "aclnnop/aclnn_dequant_swiglu_quant.h"

#include <cstring>

#include "acl/executor/executor.h"

namespace {

using Args = anynpu_dequant_swiglu_quant_args;
using Stage = anynpu::acl::FirstStage<Args>;

constexpr auto kDequantSwigluQuant =
    anynpu::acl::make_operator<Args, anynpu_dequant_swiglu_quant_check, anynpu_dequant_swiglu_quant>(
        "aclnnDequantSwigluQuant", anynpu::acl::Views::copied);

}  // namespace

extern "C" aclnnStatus aclnnDequantSwigluQuantGetWorkspaceSize(
    const aclTensor* x, const aclTensor* weightScaleOptional, const aclTensor* activationScaleOptional,
    const aclTensor* biasOptional, const aclTensor* quantScaleOptional, const aclTensor* quantOffsetOptional,
    const aclTensor* groupIndexOptional, bool activateLeft, char* quantModeOptional, const aclTensor* y,
    const aclTensor* scale, uint64_t* workspaceSize, aclOpExecutor** executor) {
  return anynpu::acl::first_stage<Args>(kDequantSwigluQuant, workspaceSize, executor, [&](Stage& stage) {
    stage.input("x", x, &Args::x);
    stage.optional("weightScaleOptional", weightScaleOptional, &Args::weight_scale);
    stage.optional("activationScaleOptional", activationScaleOptional, &Args::activation_scale);
    stage.optional("biasOptional", biasOptional, &Args::bias);
    stage.optional("quantScaleOptional", quantScaleOptional, &Args::quant_scale);
    stage.optional("quantOffsetOptional", quantOffsetOptional, &Args::quant_offset);
    stage.optional("groupIndexOptional", groupIndexOptional, &Args::group_index);
    stage.output("y", y, &Args::y);
    stage.output("scale", scale, &Args::scale);
    const char* mode = quantModeOptional == nullptr ? "static" : quantModeOptional;
    const bool dynamic = std::strcmp(mode, "dynamic") == 0;
    stage.require(dynamic || std::strcmp(mode, "static") == 0,
                  "quantModeOptional must be static or dynamic, got \"%.20s\"", mode);
    stage.args.activate_left = activateLeft;
    stage.args.quant_mode = dynamic;
    stage.args.clamp_limit = 7.0f;  // of the other forms of SwiGLU; checked, not used
    stage.args.glu_alpha = 1.702f;
    stage.args.glu_bias = 1.0f;
  });
}

extern "C" aclnnStatus aclnnDequantSwigluQuant(void* workspace, uint64_t workspaceSize, aclOpExecutor* executor,
                                               aclrtStream stream) {
  return launch(kDequantSwigluQuant, workspace, workspaceSize, executor, stream);
}
