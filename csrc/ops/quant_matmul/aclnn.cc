// SPDX-License-Identifier: Apache-2.0
#include <utility>

#include "acl/executor/executor.h"
#include "aclnnop/aclnn_quant_matmul_v3.h"
#include "aclnnop/aclnn_quant_matmul_v4.h"
#include "aclnnop/aclnn_quant_matmul_v5.h"
#include "aclnnop/aclnn_quant_matmul_weight_nz.h"

namespace {

using Args = anynpu_quant_matmul_args;
using Stage = anynpu::acl::FirstStage<Args>;

constexpr anynpu::acl::Operator version(const char* name) {
  return anynpu::acl::make_operator<Args, anynpu_quant_matmul_check, anynpu_quant_matmul>(name);
}

constexpr auto kV3 = version("aclnnQuantMatmulV3");
constexpr auto kV4 = version("aclnnQuantMatmulV4");
constexpr auto kV5 = version("aclnnQuantMatmulV5");
constexpr auto kWeightNz = version("aclnnQuantMatmulWeightNz");

void transpose(anynpu_tensor& matrix) {
  if (matrix.ndim < 2) return;
  const int row = matrix.ndim - 2, column = matrix.ndim - 1;
  std::swap(matrix.shape[row], matrix.shape[column]);
  std::swap(matrix.strides[row], matrix.strides[column]);
}

void take_matrices(Stage& stage, const aclTensor* x1, const aclTensor* x2, bool transpose_x1, bool transpose_x2) {
  stage.input("x1", x1, &Args::x1);
  stage.input("x2", x2, &Args::x2);
  if (transpose_x1) transpose(stage.args.x1);
  if (transpose_x2) transpose(stage.args.x2);
}

// The arguments of V5 and WeightNz in their order.
struct Newer {
  const aclTensor *x1, *x2, *x1_scale, *x2_scale, *y_scale, *x1_offset, *x2_offset, *y_offset, *bias;
  bool transpose_x1, transpose_x2;
  int64_t group_size;
  const aclTensor* out;
};

void take(Stage& stage, const Newer& call) {
  take_matrices(stage, call.x1, call.x2, call.transpose_x1, call.transpose_x2);
  stage.optional("x1Scale", call.x1_scale, &Args::pertoken_scale);
  stage.input("x2Scale", call.x2_scale, &Args::scale);
  stage.reserved("yScale", call.y_scale);
  stage.reserved("x1Offset", call.x1_offset);
  stage.optional("x2Offset", call.x2_offset, &Args::offset);
  stage.reserved("yOffset", call.y_offset);
  stage.optional("bias", call.bias, &Args::bias);
  stage.output("out", call.out, &Args::y);
  stage.args.group_size = call.group_size;
}

}  // namespace

extern "C" aclnnStatus aclnnQuantMatmulV3GetWorkspaceSize(const aclTensor* x1, const aclTensor* x2,
                                                          const aclTensor* scale, const aclTensor* offset,
                                                          const aclTensor* bias, bool transposeX1, bool transposeX2,
                                                          const aclTensor* out, uint64_t* workspaceSize,
                                                          aclOpExecutor** executor) {
  return anynpu::acl::first_stage<Args>(kV3, workspaceSize, executor, [&](Stage& stage) {
    take_matrices(stage, x1, x2, transposeX1, transposeX2);
    stage.input("scale", scale, &Args::scale);
    stage.optional("offset", offset, &Args::offset);
    stage.optional("bias", bias, &Args::bias);
    stage.output("out", out, &Args::y);
  });
}

ANYNPU_SECOND_STAGE(aclnnQuantMatmulV3, kV3)

extern "C" aclnnStatus aclnnQuantMatmulV4GetWorkspaceSize(const aclTensor* x1, const aclTensor* x2,
                                                          const aclTensor* scale, const aclTensor* offset,
                                                          const aclTensor* pertokenScaleOptional, const aclTensor* bias,
                                                          bool transposeX1, bool transposeX2, const aclTensor* out,
                                                          uint64_t* workspaceSize, aclOpExecutor** executor) {
  return anynpu::acl::first_stage<Args>(kV4, workspaceSize, executor, [&](Stage& stage) {
    take_matrices(stage, x1, x2, transposeX1, transposeX2);
    stage.input("scale", scale, &Args::scale);
    stage.optional("offset", offset, &Args::offset);
    stage.optional("pertokenScaleOptional", pertokenScaleOptional, &Args::pertoken_scale);
    stage.optional("bias", bias, &Args::bias);
    stage.output("out", out, &Args::y);
  });
}

ANYNPU_SECOND_STAGE(aclnnQuantMatmulV4, kV4)

extern "C" aclnnStatus aclnnQuantMatmulV5GetWorkspaceSize(const aclTensor* x1, const aclTensor* x2,
                                                          const aclTensor* x1Scale, const aclTensor* x2Scale,
                                                          const aclTensor* yScale, const aclTensor* x1Offset,
                                                          const aclTensor* x2Offset, const aclTensor* yOffset,
                                                          const aclTensor* bias, bool transposeX1, bool transposeX2,
                                                          int64_t groupSize, aclTensor* out, uint64_t* workspaceSize,
                                                          aclOpExecutor** executor) {
  const Newer call{x1,      x2,   x1Scale,     x2Scale,     yScale,    x1Offset, x2Offset,
                   yOffset, bias, transposeX1, transposeX2, groupSize, out};
  return anynpu::acl::first_stage<Args>(kV5, workspaceSize, executor, [&](Stage& stage) { take(stage, call); });
}

ANYNPU_SECOND_STAGE(aclnnQuantMatmulV5, kV5)

extern "C" aclnnStatus aclnnQuantMatmulWeightNzGetWorkspaceSize(const aclTensor* x1, const aclTensor* x2,
                                                                const aclTensor* x1Scale, const aclTensor* x2Scale,
                                                                const aclTensor* yScale, const aclTensor* x1Offset,
                                                                const aclTensor* x2Offset, const aclTensor* yOffset,
                                                                const aclTensor* bias, bool transposeX1,
                                                                bool transposeX2, int64_t groupSize, aclTensor* out,
                                                                uint64_t* workspaceSize, aclOpExecutor** executor) {
  const Newer call{x1,      x2,   x1Scale,     x2Scale,     yScale,    x1Offset, x2Offset,
                   yOffset, bias, transposeX1, transposeX2, groupSize, out};
  return anynpu::acl::first_stage<Args>(kWeightNz, workspaceSize, executor, [&](Stage& stage) {
    take(stage, call);
    stage.require(!stage.ok() || stage.args.x2.format == ANYNPU_FRACTAL_NZ,
                  "x2 must be in FRACTAL_NZ (29), got format %d", stage.args.x2.format);
  });
}

ANYNPU_SECOND_STAGE(aclnnQuantMatmulWeightNz, kWeightNz)
