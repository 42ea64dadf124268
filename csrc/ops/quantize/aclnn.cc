// SPDX-License-Identifier: Apache-2.0
#include <cstring>

#include "acl/executor/executor.h"
#include "aclnnop/aclnn_ascend_quant.h"
#include "aclnnop/aclnn_quantize.h"

namespace {

using Args = anynpu_quantize_args;
using Stage = anynpu::acl::FirstStage<Args>;

constexpr auto kQuantize = anynpu::acl::make_operator<Args, anynpu_quantize_check, anynpu_quantize>("aclnnQuantize");
constexpr auto kAscendQuant =
    anynpu::acl::make_operator<Args, anynpu_quantize_check, anynpu_quantize>("aclnnAscendQuant");

}  // namespace

extern "C" aclnnStatus aclnnQuantizeGetWorkspaceSize(const aclTensor* x, const aclTensor* scales,
                                                     const aclTensor* zeroPoints, aclDataType dtype, int32_t axis,
                                                     aclTensor* out, uint64_t* workspaceSize, aclOpExecutor** executor) {
  return anynpu::acl::first_stage<Args>(kQuantize, workspaceSize, executor, [&](Stage& stage) {
    stage.input("x", x, &Args::x);
    stage.input("scales", scales, &Args::scales);
    stage.optional("zeroPoints", zeroPoints, &Args::zero_points);
    stage.output("out", out, &Args::y);
    stage.require(dtype == stage.args.y.dtype, "dtype is %d, but out has dtype %d", static_cast<int>(dtype),
                  stage.args.y.dtype);
    stage.args.axis = axis;
    stage.args.div_mode = 1;
  });
}

extern "C" aclnnStatus aclnnQuantize(void* workspace, uint64_t workspaceSize, aclOpExecutor* executor, aclrtStream stream) {
  return launch(kQuantize, workspace, workspaceSize, executor, stream);
}

extern "C" aclnnStatus aclnnAscendQuantGetWorkspaceSize(const aclTensor* x, const aclTensor* scale, const aclTensor* offset,
                                                        bool sqrtMode, const char* roundMode, int32_t dstType,
                                                        const aclTensor* y, uint64_t* workspaceSize,
                                                        aclOpExecutor** executor) {
  return anynpu::acl::first_stage<Args>(kAscendQuant, workspaceSize, executor, [&](Stage& stage) {
    stage.input("x", x, &Args::x);
    stage.input("scale", scale, &Args::scales);
    stage.optional("offset", offset, &Args::zero_points);
    stage.output("y", y, &Args::y);
    stage.require(!sqrtMode, "sqrtMode is not implemented, pass the square of scale");
    stage.require(roundMode == nullptr || std::strcmp(roundMode, "round") == 0,
                  "roundMode %s is not implemented, only round (half to even)", roundMode == nullptr ? "" : roundMode);
    stage.require(dstType == stage.args.y.dtype, "dstType is %d, but y has dtype %d", dstType, stage.args.y.dtype);
    stage.args.axis = -1;
    stage.args.div_mode = 0;
  });
}

extern "C" aclnnStatus aclnnAscendQuant(void* workspace, uint64_t workspaceSize, aclOpExecutor* executor,
                                        aclrtStream stream) {
  return launch(kAscendQuant, workspace, workspaceSize, executor, stream);
}
