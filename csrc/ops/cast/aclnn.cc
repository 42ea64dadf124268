// SPDX-License-Identifier: Apache-2.0
#include "acl/executor/executor.h"
#include "aclnnop/aclnn_cast.h"
#include "core/tensor.h"

static constexpr auto kCast = anynpu::acl::make_operator<anynpu_cast_args, anynpu_cast_check, anynpu_cast>(
    "aclnnCast", anynpu::acl::Views::in_place);

extern "C" aclnnStatus aclnnCastGetWorkspaceSize(const aclTensor* self, const aclDataType dtype, aclTensor* out,
                                                 uint64_t* workspaceSize, aclOpExecutor** executor) {
  return anynpu::acl::first_stage<anynpu_cast_args>(kCast, workspaceSize, executor, [&](auto& stage) {
    stage.input("self", self, &anynpu_cast_args::x);
    stage.output("out", out, &anynpu_cast_args::y);
    stage.require(dtype == stage.args.y.dtype, "dtype is %s, but out has dtype %s", anynpu::dtype_name(dtype),
                  anynpu::dtype_name(stage.args.y.dtype));
  });
}

ANYNPU_SECOND_STAGE(aclnnCast, kCast)
