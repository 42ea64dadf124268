// SPDX-License-Identifier: Apache-2.0
#include "acl/executor/executor.h"
#include "aclnnop/aclnn_add_rms_norm.h"
#include "aclnnop/aclnn_matmul.h"
#include "aclnnop/aclnn_mm.h"
#include "aclnnop/aclnn_rms_norm.h"

namespace {

using RmsNorm = anynpu_rms_norm_args;
using Matmul = anynpu_float_matmul_args;
using anynpu::acl::FirstStage;
using anynpu::acl::Views;

constexpr anynpu::acl::Operator norm(const char* name) {
  return anynpu::acl::make_operator<RmsNorm, anynpu_rms_norm_check, anynpu_rms_norm>(name, Views::copied);
}
constexpr anynpu::acl::Operator product(const char* name) {
  return anynpu::acl::make_operator<Matmul, anynpu_float_matmul_check, anynpu_float_matmul>(name);
}

constexpr auto kRmsNorm = norm("aclnnRmsNorm");
constexpr auto kAddRmsNorm = norm("aclnnAddRmsNorm");
constexpr auto kMatmul = product("aclnnMatmul");
constexpr auto kMm = product("aclnnMm");

void take_product(FirstStage<Matmul>& stage, const aclTensor* self, const aclTensor* mat2, const aclTensor* out,
                  int8_t cube_math_type) {
  stage.input("self", self, &Matmul::x1);
  stage.input("mat2", mat2, &Matmul::x2);
  stage.output("out", out, &Matmul::y);
  stage.require(cube_math_type >= 0 && cube_math_type <= 3, "cubeMathType must be 0, 1, 2 or 3, got %d",
                cube_math_type);
}

}  // namespace

extern "C" aclnnStatus aclnnRmsNormGetWorkspaceSize(const aclTensor* x, const aclTensor* gamma, double epsilon,
                                                    const aclTensor* yOut, const aclTensor* rstdOut,
                                                    uint64_t* workspaceSize, aclOpExecutor** executor) {
  return anynpu::acl::first_stage<RmsNorm>(kRmsNorm, workspaceSize, executor, [&](auto& stage) {
    stage.input("x", x, &RmsNorm::x1);
    stage.input("gamma", gamma, &RmsNorm::gamma);
    stage.output("yOut", yOut, &RmsNorm::y);
    stage.output("rstdOut", rstdOut, &RmsNorm::rstd);
    stage.args.epsilon = static_cast<float>(epsilon);
  });
}

extern "C" aclnnStatus aclnnAddRmsNormGetWorkspaceSize(const aclTensor* x1, const aclTensor* x2, const aclTensor* gamma,
                                                       double epsilonOptional, const aclTensor* yOut,
                                                       const aclTensor* rstdOut, const aclTensor* xOut,
                                                       uint64_t* workspaceSize, aclOpExecutor** executor) {
  return anynpu::acl::first_stage<RmsNorm>(kAddRmsNorm, workspaceSize, executor, [&](auto& stage) {
    stage.input("x1", x1, &RmsNorm::x1);
    stage.input("x2", x2, &RmsNorm::x2);
    stage.input("gamma", gamma, &RmsNorm::gamma);
    stage.output("yOut", yOut, &RmsNorm::y);
    stage.output("rstdOut", rstdOut, &RmsNorm::rstd);
    stage.output("xOut", xOut, &RmsNorm::x);
    stage.args.epsilon = static_cast<float>(epsilonOptional);
  });
}

extern "C" aclnnStatus aclnnMatmulGetWorkspaceSize(const aclTensor* self, const aclTensor* mat2, aclTensor* out,
                                                   int8_t cubeMathType, uint64_t* workspaceSize,
                                                   aclOpExecutor** executor) {
  return anynpu::acl::first_stage<Matmul>(kMatmul, workspaceSize, executor,
                                          [&](auto& stage) { take_product(stage, self, mat2, out, cubeMathType); });
}

extern "C" aclnnStatus aclnnMmGetWorkspaceSize(const aclTensor* self, const aclTensor* mat2, aclTensor* out,
                                               int8_t cubeMathType, uint64_t* workspaceSize, aclOpExecutor** executor) {
  return anynpu::acl::first_stage<Matmul>(kMm, workspaceSize, executor, [&](auto& stage) {
    take_product(stage, self, mat2, out, cubeMathType);
    stage.require(stage.args.x1.ndim == 2 && stage.args.x2.ndim == 2, "self and mat2 must have 2 axes, got %d and %d",
                  stage.args.x1.ndim, stage.args.x2.ndim);
  });
}

ANYNPU_SECOND_STAGE(aclnnRmsNorm, kRmsNorm)

ANYNPU_SECOND_STAGE(aclnnAddRmsNorm, kAddRmsNorm)

ANYNPU_SECOND_STAGE(aclnnMatmul, kMatmul)

ANYNPU_SECOND_STAGE(aclnnMm, kMm)
