// SPDX-License-Identifier: Apache-2.0
#include "acl/executor/executor.h"
#include "aclnnop/aclnn_dynamic_quant.h"
#include "aclnnop/aclnn_dynamic_quant_v2.h"
#include "core/tensor.h"

namespace {

using Args = anynpu_dynamic_quant_args;
using Stage = anynpu::acl::FirstStage<Args>;

constexpr anynpu::acl::Operator version(const char* name) {
  return anynpu::acl::make_operator<Args, anynpu_dynamic_quant_check, anynpu_dynamic_quant>(name,
                                                                                            anynpu::acl::Views::copied);
}

constexpr auto kV1 = version("aclnnDynamicQuant");
constexpr auto kV2 = version("aclnnDynamicQuantV2");

}  // namespace

extern "C" aclnnStatus aclnnDynamicQuantGetWorkspaceSize(const aclTensor* x, const aclTensor* smoothScalesOptional,
                                                         const aclTensor* yOut, const aclTensor* scaleOut,
                                                         uint64_t* workspaceSize, aclOpExecutor** executor) {
  return anynpu::acl::first_stage<Args>(kV1, workspaceSize, executor, [&](Stage& stage) {
    stage.input("x", x, &Args::x);
    stage.optional("smoothScalesOptional", smoothScalesOptional, &Args::smooth_scales);
    stage.output("yOut", yOut, &Args::y);
    stage.output("scaleOut", scaleOut, &Args::scale);
  });
}

ANYNPU_SECOND_STAGE(aclnnDynamicQuant, kV1)

extern "C" aclnnStatus aclnnDynamicQuantV2GetWorkspaceSize(const aclTensor* x, const aclTensor* smoothScalesOptional,
                                                           const aclTensor* groupIndexOptional, int64_t dstType,
                                                           const aclTensor* yOut, const aclTensor* scaleOut,
                                                           const aclTensor* offsetOut, uint64_t* workspaceSize,
                                                           aclOpExecutor** executor) {
  return anynpu::acl::first_stage<Args>(kV2, workspaceSize, executor, [&](Stage& stage) {
    stage.input("x", x, &Args::x);
    stage.optional("smoothScalesOptional", smoothScalesOptional, &Args::smooth_scales);
    stage.optional("groupIndexOptional", groupIndexOptional, &Args::group_index);
    stage.output("yOut", yOut, &Args::y);
    stage.output("scaleOut", scaleOut, &Args::scale);
    stage.require(offsetOut == nullptr, "offsetOut must be null, quantisation with offsets is not implemented");
    stage.require(dstType == stage.args.y.dtype, "dstType is %lld, but yOut has dtype %s, which is %d",
                  anynpu::wide(dstType), anynpu::dtype_name(stage.args.y.dtype), stage.args.y.dtype);
  });
}

ANYNPU_SECOND_STAGE(aclnnDynamicQuantV2, kV2)
