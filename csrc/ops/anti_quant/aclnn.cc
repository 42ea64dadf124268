// SPDX-License-Identifier: Apache-2.0
#include "acl/executor/executor.h"
#include "aclnnop/aclnn_ascend_anti_quant.h"
#include "core/tensor.h"

namespace {

using Args = anynpu_anti_quant_args;
using Stage = anynpu::acl::FirstStage<Args>;

constexpr auto kAscendAntiQuant = anynpu::acl::make_operator<Args, anynpu_anti_quant_check, anynpu_anti_quant>(
    "aclnnAscendAntiQuant", anynpu::acl::Views::copied);

}  // namespace

extern "C" aclnnStatus aclnnAscendAntiQuantGetWorkspaceSize(const aclTensor* x, const aclTensor* scale,
                                                            const aclTensor* offset, int64_t dstType, bool sqrtMode,
                                                            const aclTensor* y, uint64_t* workspaceSize,
                                                            aclOpExecutor** executor) {
  return anynpu::acl::first_stage<Args>(kAscendAntiQuant, workspaceSize, executor, [&](Stage& stage) {
    stage.input("x", x, &Args::x);
    stage.input("scale", scale, &Args::scale);
    stage.optional("offset", offset, &Args::offset);
    stage.output("y", y, &Args::y);
    stage.require(!sqrtMode, "sqrtMode is not implemented, pass the square of scale");
    stage.require(dstType == stage.args.y.dtype, "dstType is %lld, but y has dtype %s, which is %d",
                  anynpu::wide(dstType), anynpu::dtype_name(stage.args.y.dtype), stage.args.y.dtype);
  });
}

ANYNPU_SECOND_STAGE(aclnnAscendAntiQuant, kAscendAntiQuant)
