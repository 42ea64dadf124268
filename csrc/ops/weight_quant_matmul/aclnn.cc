// SPDX-License-Identifier: Apache-2.0
#include "acl/executor/executor.h"
#include "aclnnop/aclnn_weight_quant_batch_matmul_v2.h"
#include "aclnnop/aclnn_weight_quant_batch_matmul_v3.h"
#include "core/status.h"

namespace {

using anynpu::wide;
using Args = anynpu_weight_quant_matmul_args;
using Stage = anynpu::acl::FirstStage<Args>;

constexpr auto kV2 = anynpu::acl::make_operator<Args, anynpu_weight_quant_matmul_check, anynpu_weight_quant_matmul>(
    "aclnnWeightQuantBatchMatmulV2");
constexpr auto kV3 = anynpu::acl::make_operator<Args, anynpu_weight_quant_matmul_check, anynpu_weight_quant_matmul>(
    "aclnnWeightQuantBatchMatmulV3");

struct Tensors {
  const aclTensor *x, *weight, *scale, *offset, *quant_scale, *quant_offset, *bias, *y;
};

void limit_nz(Stage& stage, int64_t k, int64_t n) {
  const Args& args = stage.args;
  stage.limit(args.quant_scale.format == 0, "wants no quantScale with a FRACTAL_NZ weight");
  if (args.weight.dtype == ANYNPU_INT8) return;
  const int64_t group = args.group_size;
  if (group > 0) {
    constexpr const char* rule = "with an int4 FRACTAL_NZ weight and groups wants";
    stage.limit(group == 64 || group == 128, "%s antiquantGroupSize in {64, 128}, got %lld", rule, wide(group));
    stage.limit(k % group == 0, "%s K %% antiquantGroupSize == 0, got %lld %% %lld", rule, wide(k), wide(group));
    stage.limit(n % 64 == 0, "%s N %% 64 == 0, got N = %lld", rule, wide(n));
  } else if (args.scale.ndim > 0 && args.scale.shape[args.scale.ndim - 1] > 1) {
    stage.limit(args.weight.strides[args.weight.ndim - 1] != 1,
                "with an int4 FRACTAL_NZ weight and per-channel scales wants a transposed weight");
  }
}

// The documented limits of Atlas A2 and A3, as src/anynpu/_strict.py states them for Python.
void limit(Stage& stage) {
  const Args& args = stage.args;
  if (!stage.ok() || args.x.ndim < 1 || args.y.ndim < 1) return;
  const int64_t k = args.x.shape[args.x.ndim - 1], n = args.y.shape[args.y.ndim - 1];
  stage.limit(args.x.ndim == 2, "wants a 2-D x, got %d axes", args.x.ndim);
  stage.limit(args.x.dtype != ANYNPU_FLOAT32, "wants x in float16 or bfloat16, got float32");
  stage.limit(args.scale.dtype == ANYNPU_INT64 || args.scale.dtype == args.x.dtype,
              "wants antiquantScale in the dtype of x, %d, got %d", args.x.dtype, args.scale.dtype);
  stage.limit(k <= 65535, "wants K <= 65535, got %lld", wide(k));
  stage.limit(n <= 65535, "wants N <= 65535, got %lld", wide(n));
  if (args.weight.format == ANYNPU_FRACTAL_NZ) limit_nz(stage, k, n);
}

// aclnnTransQuantParamV2 and V3 write their words as UINT64 or INT64.
void read_words(anynpu_tensor& tensor) {
  if (tensor.dtype == ANYNPU_UINT64) tensor.dtype = ANYNPU_INT64;
}

aclnnStatus first_stage(const anynpu::acl::Operator& op, const Tensors& tensors, int group_size, int inner_precise,
                        uint64_t* workspace_size, aclOpExecutor** executor) {
  return anynpu::acl::first_stage<Args>(op, workspace_size, executor, [&](Stage& stage) {
    stage.input("x", tensors.x, &Args::x);
    stage.input("weight", tensors.weight, &Args::weight);
    stage.input("antiquantScale", tensors.scale, &Args::scale);
    stage.optional("antiquantOffset", tensors.offset, &Args::offset);
    stage.optional("quantScale", tensors.quant_scale, &Args::quant_scale);
    stage.optional("quantOffset", tensors.quant_offset, &Args::quant_offset);
    stage.optional("bias", tensors.bias, &Args::bias);
    read_words(stage.args.scale);
    read_words(stage.args.quant_scale);
    stage.output("y", tensors.y, &Args::y);
    stage.args.group_size = group_size;
    stage.args.inner_precise = inner_precise;
    limit(stage);
  });
}

}  // namespace

extern "C" aclnnStatus aclnnWeightQuantBatchMatmulV2GetWorkspaceSize(
    const aclTensor* x, const aclTensor* weight, const aclTensor* antiquantScale,
    const aclTensor* antiquantOffsetOptional, const aclTensor* quantScaleOptional, const aclTensor* quantOffsetOptional,
    const aclTensor* biasOptional, int antiquantGroupSize, const aclTensor* y, uint64_t* workspaceSize,
    aclOpExecutor** executor) {
  const Tensors tensors{
      x, weight, antiquantScale, antiquantOffsetOptional, quantScaleOptional, quantOffsetOptional, biasOptional, y};
  return first_stage(kV2, tensors, antiquantGroupSize, 0, workspaceSize, executor);
}

ANYNPU_SECOND_STAGE(aclnnWeightQuantBatchMatmulV2, kV2)

extern "C" aclnnStatus aclnnWeightQuantBatchMatmulV3GetWorkspaceSize(
    const aclTensor* x, const aclTensor* weight, const aclTensor* antiquantScale,
    const aclTensor* antiquantOffsetOptional, const aclTensor* quantScaleOptional, const aclTensor* quantOffsetOptional,
    const aclTensor* biasOptional, int antiquantGroupSize, int innerPrecise, const aclTensor* y,
    uint64_t* workspaceSize, aclOpExecutor** executor) {
  const Tensors tensors{
      x, weight, antiquantScale, antiquantOffsetOptional, quantScaleOptional, quantOffsetOptional, biasOptional, y};
  return first_stage(kV3, tensors, antiquantGroupSize, innerPrecise, workspaceSize, executor);
}

ANYNPU_SECOND_STAGE(aclnnWeightQuantBatchMatmulV3, kV3)
