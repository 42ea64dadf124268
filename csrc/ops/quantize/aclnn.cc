// SPDX-License-Identifier: Apache-2.0
#include <cstring>

#include "acl/executor/executor.h"
#include "aclnnop/aclnn_ascend_quant.h"
#include "aclnnop/aclnn_ascend_quant_v3.h"
#include "aclnnop/aclnn_quantize.h"
#include "core/tensor.h"

namespace {

using Args = anynpu_quantize_args;
using Stage = anynpu::acl::FirstStage<Args>;

constexpr auto kQuantize = anynpu::acl::make_operator<Args, anynpu_quantize_check, anynpu_quantize>("aclnnQuantize");
constexpr auto kAscendQuant =
    anynpu::acl::make_operator<Args, anynpu_quantize_check, anynpu_quantize>("aclnnAscendQuant");
constexpr auto kAscendQuantV3 =
    anynpu::acl::make_operator<Args, anynpu_quantize_check, anynpu_quantize>("aclnnAscendQuantV3");

struct AscendQuant {
  const aclTensor *x, *scale, *offset, *y;
  bool sqrt_mode;
  const char* round_mode;
  int32_t dtype, axis;
};

aclnnStatus ascend_quant(const anynpu::acl::Operator& op, const AscendQuant& call, uint64_t* workspace_size,
                         aclOpExecutor** executor) {
  return anynpu::acl::first_stage<Args>(op, workspace_size, executor, [&](Stage& stage) {
    stage.input("x", call.x, &Args::x);
    stage.input("scale", call.scale, &Args::scales);
    stage.optional("offset", call.offset, &Args::zero_points);
    stage.output("y", call.y, &Args::y);
    stage.require(!call.sqrt_mode, "sqrtMode is not implemented, pass the square of scale");
    stage.require(call.round_mode == nullptr || std::strcmp(call.round_mode, "round") == 0,
                  "roundMode %s is not implemented, only round (half to even)",
                  call.round_mode == nullptr ? "" : call.round_mode);
    stage.require(call.dtype == stage.args.y.dtype, "dstType is %s, but y has dtype %s", anynpu::dtype_name(call.dtype),
                  anynpu::dtype_name(stage.args.y.dtype));
    stage.args.axis = call.axis;
    stage.args.div_mode = 0;
  });
}

}  // namespace

extern "C" aclnnStatus aclnnQuantizeGetWorkspaceSize(const aclTensor* x, const aclTensor* scales,
                                                     const aclTensor* zeroPoints, aclDataType dtype, int32_t axis,
                                                     aclTensor* out, uint64_t* workspaceSize,
                                                     aclOpExecutor** executor) {
  return anynpu::acl::first_stage<Args>(kQuantize, workspaceSize, executor, [&](Stage& stage) {
    stage.input("x", x, &Args::x);
    stage.input("scales", scales, &Args::scales);
    stage.optional("zeroPoints", zeroPoints, &Args::zero_points);
    stage.output("out", out, &Args::y);
    stage.require(dtype == stage.args.y.dtype, "dtype is %s, but out has dtype %s", anynpu::dtype_name(dtype),
                  anynpu::dtype_name(stage.args.y.dtype));
    stage.args.axis = axis;
    stage.args.div_mode = 1;
  });
}

ANYNPU_SECOND_STAGE(aclnnQuantize, kQuantize)

extern "C" aclnnStatus aclnnAscendQuantGetWorkspaceSize(const aclTensor* x, const aclTensor* scale,
                                                        const aclTensor* offset, bool sqrtMode, const char* roundMode,
                                                        int32_t dstType, const aclTensor* y, uint64_t* workspaceSize,
                                                        aclOpExecutor** executor) {
  return ascend_quant(kAscendQuant, {x, scale, offset, y, sqrtMode, roundMode, dstType, -1}, workspaceSize, executor);
}

ANYNPU_SECOND_STAGE(aclnnAscendQuant, kAscendQuant)

extern "C" aclnnStatus aclnnAscendQuantV3GetWorkspaceSize(const aclTensor* x, const aclTensor* scale,
                                                          const aclTensor* offset, bool sqrtMode, const char* roundMode,
                                                          int32_t dstType, int32_t axis, const aclTensor* y,
                                                          uint64_t* workspaceSize, aclOpExecutor** executor) {
  return ascend_quant(kAscendQuantV3, {x, scale, offset, y, sqrtMode, roundMode, dstType, axis}, workspaceSize,
                      executor);
}

ANYNPU_SECOND_STAGE(aclnnAscendQuantV3, kAscendQuantV3)
