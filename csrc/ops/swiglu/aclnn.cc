// SPDX-License-Identifier: Apache-2.0
#include "acl/executor/executor.h"
#include "aclnnop/aclnn_swi_glu.h"

namespace {

using Args = anynpu_swiglu_args;
using Stage = anynpu::acl::FirstStage<Args>;

constexpr auto kSwiGlu =
    anynpu::acl::make_operator<Args, anynpu_swiglu_check, anynpu_swiglu>("aclnnSwiGlu", anynpu::acl::Views::copied);

}  // namespace

extern "C" aclnnStatus aclnnSwiGluGetWorkspaceSize(const aclTensor* x, int64_t dim, const aclTensor* out,
                                                   uint64_t* workspaceSize, aclOpExecutor** executor) {
  return anynpu::acl::first_stage<Args>(kSwiGlu, workspaceSize, executor, [&](Stage& stage) {
    stage.input("x", x, &Args::x);
    stage.output("out", out, &Args::y);
    stage.args.dim = dim;
  });
}

ANYNPU_SECOND_STAGE(aclnnSwiGlu, kSwiGlu)
