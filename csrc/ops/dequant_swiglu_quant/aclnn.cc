// SPDX-License-Identifier: Apache-2.0
#include "aclnnop/aclnn_dequant_swiglu_quant.h"

#include <cstring>

#include "acl/executor/executor.h"
#include "aclnnop/aclnn_dequant_swiglu_quant_v2.h"
#include "core/status.h"

namespace {

using anynpu::wide;
using Args = anynpu_dequant_swiglu_quant_args;
using Stage = anynpu::acl::FirstStage<Args>;

constexpr auto kDequantSwigluQuant =
    anynpu::acl::make_operator<Args, anynpu_dequant_swiglu_quant_check, anynpu_dequant_swiglu_quant>(
        "aclnnDequantSwigluQuant", anynpu::acl::Views::copied);
constexpr auto kDequantSwigluQuantV2 =
    anynpu::acl::make_operator<Args, anynpu_dequant_swiglu_quant_check, anynpu_dequant_swiglu_quant>(
        "aclnnDequantSwigluQuantV2", anynpu::acl::Views::copied);

struct Tensors {
  const aclTensor *x, *weight_scale, *activation_scale, *bias, *quant_scale, *quant_offset, *group_index, *y, *scale;
};

void describe(Stage& stage, const Tensors& tensors, bool activate_left, const char* quant_mode) {
  stage.input("x", tensors.x, &Args::x);
  stage.optional("weightScaleOptional", tensors.weight_scale, &Args::weight_scale);
  stage.optional("activationScaleOptional", tensors.activation_scale, &Args::activation_scale);
  stage.optional("biasOptional", tensors.bias, &Args::bias);
  stage.optional("quantScaleOptional", tensors.quant_scale, &Args::quant_scale);
  stage.optional("quantOffsetOptional", tensors.quant_offset, &Args::quant_offset);
  stage.optional("groupIndexOptional", tensors.group_index, &Args::group_index);
  stage.output("y", tensors.y, &Args::y);
  stage.output("scale", tensors.scale, &Args::scale);
  const char* mode = quant_mode == nullptr ? "static" : quant_mode;
  const bool dynamic = std::strcmp(mode, "dynamic") == 0;
  stage.require(dynamic || std::strcmp(mode, "static") == 0,
                "quantModeOptional must be static or dynamic, got \"%.20s\"", mode);
  stage.args.activate_left = activate_left;
  stage.args.quant_mode = dynamic;
}

}  // namespace

extern "C" aclnnStatus aclnnDequantSwigluQuantGetWorkspaceSize(
    const aclTensor* x, const aclTensor* weightScaleOptional, const aclTensor* activationScaleOptional,
    const aclTensor* biasOptional, const aclTensor* quantScaleOptional, const aclTensor* quantOffsetOptional,
    const aclTensor* groupIndexOptional, bool activateLeft, char* quantModeOptional, const aclTensor* y,
    const aclTensor* scale, uint64_t* workspaceSize, aclOpExecutor** executor) {
  return anynpu::acl::first_stage<Args>(kDequantSwigluQuant, workspaceSize, executor, [&](Stage& stage) {
    describe(stage,
             {x, weightScaleOptional, activationScaleOptional, biasOptional, quantScaleOptional, quantOffsetOptional,
              groupIndexOptional, y, scale},
             activateLeft, quantModeOptional);
    stage.args.clamp_limit = 7.0f;  // of the other forms of SwiGLU; checked, not used
    stage.args.glu_alpha = 1.702f;
    stage.args.glu_bias = 1.0f;
  });
}

ANYNPU_SECOND_STAGE(aclnnDequantSwigluQuant, kDequantSwigluQuant)

extern "C" aclnnStatus aclnnDequantSwigluQuantV2GetWorkspaceSize(
    const aclTensor* x, const aclTensor* weightScaleOptional, const aclTensor* activationScaleOptional,
    const aclTensor* biasOptional, const aclTensor* quantScaleOptional, const aclTensor* quantOffsetOptional,
    const aclTensor* groupIndexOptional, bool activateLeft, char* quantModeOptional, int64_t dstType,
    char* roundModeOptional, int64_t activateDim, int64_t swigluMode, double clampLimit, double gluAlpha,
    double gluBias, const aclTensor* y, const aclTensor* scale, uint64_t* workspaceSize, aclOpExecutor** executor) {
  return anynpu::acl::first_stage<Args>(kDequantSwigluQuantV2, workspaceSize, executor, [&](Stage& stage) {
    describe(stage,
             {x, weightScaleOptional, activationScaleOptional, biasOptional, quantScaleOptional, quantOffsetOptional,
              groupIndexOptional, y, scale},
             activateLeft, quantModeOptional);
    stage.require(dstType == ACL_INT8, "dstType must be 2 (int8), got %lld", wide(dstType));
    stage.require(roundModeOptional == nullptr || std::strcmp(roundModeOptional, "rint") == 0,
                  "roundModeOptional must be rint, got \"%.20s\"", roundModeOptional);
    const int64_t last = stage.args.x.ndim - 1;
    stage.require(activateDim == -1 || activateDim == last, "activateDim must be -1 or %lld, got %lld", wide(last),
                  wide(activateDim));
    stage.require(0 <= swigluMode && swigluMode <= 2, "swiglu_mode only support 0, 1 or 2, but got %lld",
                  wide(swigluMode));
    stage.args.swiglu_mode = static_cast<int32_t>(swigluMode);
    stage.args.clamp_limit = static_cast<float>(clampLimit);
    stage.args.glu_alpha = static_cast<float>(gluAlpha);
    stage.args.glu_bias = static_cast<float>(gluBias);
  });
}

ANYNPU_SECOND_STAGE(aclnnDequantSwigluQuantV2, kDequantSwigluQuantV2)
