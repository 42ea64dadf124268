// SPDX-License-Identifier: Apache-2.0
#include "acl/executor/executor.h"
#include "aclnnop/aclnn_grouped_matmul_finalize_routing.h"
#include "aclnnop/aclnn_grouped_matmul_finalize_routing_v2.h"
#include "aclnnop/aclnn_grouped_matmul_finalize_routing_v3.h"
#include "aclnnop/aclnn_grouped_matmul_finalize_routing_weight_nz.h"
#include "aclnnop/aclnn_grouped_matmul_finalize_routing_weight_nz_v2.h"
#include "core/tensor.h"

namespace {

using anynpu::wide;
using Args = anynpu_grouped_matmul_combine_args;
using Stage = anynpu::acl::FirstStage<Args>;

constexpr anynpu::acl::Operator version(const char* name) {
  return anynpu::acl::make_operator<Args, anynpu_grouped_matmul_combine_check, anynpu_grouped_matmul_combine>(name);
}

constexpr auto kV1 = version("aclnnGroupedMatmulFinalizeRouting");
constexpr auto kV2 = version("aclnnGroupedMatmulFinalizeRoutingV2");
constexpr auto kV3 = version("aclnnGroupedMatmulFinalizeRoutingV3");
constexpr auto kWeightNz = version("aclnnGroupedMatmulFinalizeRoutingWeightNz");
constexpr auto kWeightNzV2 = version("aclnnGroupedMatmulFinalizeRoutingWeightNzV2");

struct Tensors {
  const aclTensor *x, *w, *scale, *bias, *pertoken_scale, *group_list, *shared_input, *logit, *row_index, *y;
  const aclTensor *offset = nullptr, *antiquant_scale = nullptr, *antiquant_offset = nullptr;
};

struct Attributes {
  int64_t dtype;
  float shared_input_weight;
  int64_t shared_input_offset;
  bool transpose_x, transpose_w;
  int64_t group_list_type;
  bool nz, has_offsets;  // a weight in FRACTAL_NZ; offsetOptional and the two reserved tensors after it
};

// The document of the first version, which later ones widen.
void limit_first_version(Stage& stage) {
  const anynpu_tensor &weight = stage.args.weight, &scale = stage.args.scale;
  if (!stage.ok()) return;
  stage.limit(weight.dtype != ANYNPU_INT8, "wants w in int32 or int4, got int8");
  stage.limit(weight.format == ANYNPU_ND, "wants w in ND (2), got format %d", weight.format);
  stage.limit(scale.ndim == 3 && scale.shape[1] == 1, "wants scale of shape (e, 1, n), got %s",
              anynpu::shape_text(scale));
}

// The documented limits of Atlas A2 and A3, as src/anynpu/_strict.py states them for Python.
void limit(Stage& stage) {
  const Args& args = stage.args;
  if (!stage.ok() || args.x.ndim != 2 || args.weight.ndim != 3 || args.y.ndim != 2) return;
  const int64_t m = args.x.shape[0], k = args.x.shape[1], n = args.y.shape[1], experts = args.weight.shape[0];
  stage.limit(m >= 1 && m <= 131072, "wants m in [1, 16 * 1024 * 8 = 131072], got %lld", wide(m));
  stage.limit(experts >= 1 && experts <= 256, "wants e in [1, 256], got %lld", wide(experts));
  stage.limit(args.y.shape[0] <= 16384, "wants at most 16 * 1024 = 16384 rows of y, got %lld", wide(args.y.shape[0]));
  if (args.weight.dtype != ANYNPU_INT8) {
    stage.limit(k == 2048, "with int4 weights wants k = 2048, got %lld", wide(k));
    stage.limit(n == 7168, "with int4 weights wants n = 7168, got %lld", wide(n));
  }
  const anynpu_tensor& shared = args.shared_input;
  if (anynpu::present(shared) && shared.ndim == 2) {
    stage.limit(shared.shape[0] >= 1 && shared.shape[0] <= 2048,
                "wants 1 to 2 * 1024 = 2048 rows of sharedInput, got %lld", wide(shared.shape[0]));
  }
}

aclnnStatus first_stage(const anynpu::acl::Operator& op, const Tensors& tensors, const Attributes& attributes,
                        uint64_t* workspace_size, aclOpExecutor** executor) {
  return anynpu::acl::first_stage<Args>(op, workspace_size, executor, [&](Stage& stage) {
    stage.input("x", tensors.x, &Args::x);
    stage.input("w", tensors.w, &Args::weight);
    stage.input("scaleOptional", tensors.scale, &Args::scale);
    stage.optional("biasOptional", tensors.bias, &Args::bias);
    if (attributes.has_offsets) {
      stage.optional("offsetOptional", tensors.offset, &Args::offset);
      stage.reserved("antiquantScaleOptional", tensors.antiquant_scale);
      stage.reserved("antiquantOffsetOptional", tensors.antiquant_offset);
    }
    stage.optional("pertokenScaleOptional", tensors.pertoken_scale, &Args::pertoken_scale);
    stage.input("groupListOptional", tensors.group_list, &Args::group_list);
    stage.optional("sharedInputOptional", tensors.shared_input, &Args::shared_input);
    stage.optional("logitOptional", tensors.logit, &Args::logit);
    stage.input("rowIndexOptional", tensors.row_index, &Args::row_index);
    stage.output("y", tensors.y, &Args::y);
    stage.require(attributes.dtype == 0, "dtype must be 0 (FLOAT32), got %lld", wide(attributes.dtype));
    stage.require(!attributes.transpose_x, "transposeX must be false");
    stage.require(!attributes.transpose_w, "transposeW must be false");
    const int64_t type = attributes.group_list_type;
    stage.require(type == 0 || type == 1, "group_list_type must be 0 (running sums) or 1 (counts), got %lld",
                  wide(type));
    if (attributes.nz && stage.ok()) {
      stage.require(stage.args.weight.format == ANYNPU_FRACTAL_NZ, "w must be in FRACTAL_NZ (29), got format %d",
                    stage.args.weight.format);
    }
    stage.args.shared_input_weight = attributes.shared_input_weight;
    stage.args.shared_input_offset = attributes.shared_input_offset;
    stage.args.group_list_type = static_cast<int32_t>(type);
    if (&op == &kV1) limit_first_version(stage);
    limit(stage);
  });
}

}  // namespace

extern "C" aclnnStatus aclnnGroupedMatmulFinalizeRoutingGetWorkspaceSize(
    const aclTensor* x, aclTensor* w, const aclTensor* scaleOptional, const aclTensor* biasOptional,
    const aclTensor* pertokenScaleOptional, const aclTensor* groupListOptional, const aclTensor* sharedInputOptional,
    const aclTensor* logitOptional, const aclTensor* rowIndexOptional, int64_t dtype, float sharedInputWeight,
    int64_t sharedInputOffset, bool transposeX, bool transposeW, int64_t groupListType, aclTensor* y,
    uint64_t* workspaceSize, aclOpExecutor** executor) {
  return first_stage(kV1,
                     {x, w, scaleOptional, biasOptional, pertokenScaleOptional, groupListOptional, sharedInputOptional,
                      logitOptional, rowIndexOptional, y},
                     {dtype, sharedInputWeight, sharedInputOffset, transposeX, transposeW, groupListType, false, false},
                     workspaceSize, executor);
}

ANYNPU_SECOND_STAGE(aclnnGroupedMatmulFinalizeRouting, kV1)

extern "C" aclnnStatus aclnnGroupedMatmulFinalizeRoutingV2GetWorkspaceSize(
    const aclTensor* x, aclTensor* w, const aclTensor* scaleOptional, const aclTensor* biasOptional,
    const aclTensor* offsetOptional, const aclTensor* antiquantScaleOptional, const aclTensor* antiquantOffsetOptional,
    const aclTensor* pertokenScaleOptional, const aclTensor* groupListOptional, const aclTensor* sharedInputOptional,
    const aclTensor* logitOptional, const aclTensor* rowIndexOptional, int64_t dtype, float sharedInputWeight,
    int64_t sharedInputOffset, bool transposeX, bool transposeW, int64_t groupListType, aclTensor* y,
    uint64_t* workspaceSize, aclOpExecutor** executor) {
  return first_stage(
      kV2,
      {x, w, scaleOptional, biasOptional, pertokenScaleOptional, groupListOptional, sharedInputOptional, logitOptional,
       rowIndexOptional, y, offsetOptional, antiquantScaleOptional, antiquantOffsetOptional},
      {dtype, sharedInputWeight, sharedInputOffset, transposeX, transposeW, groupListType, false, true}, workspaceSize,
      executor);
}

ANYNPU_SECOND_STAGE(aclnnGroupedMatmulFinalizeRoutingV2, kV2)

extern "C" aclnnStatus aclnnGroupedMatmulFinalizeRoutingV3GetWorkspaceSize(
    const aclTensor* x, aclTensor* w, const aclTensor* scaleOptional, const aclTensor* biasOptional,
    const aclTensor* offsetOptional, const aclTensor* antiquantScaleOptional, const aclTensor* antiquantOffsetOptional,
    const aclTensor* pertokenScaleOptional, const aclTensor* groupListOptional, const aclTensor* sharedInputOptional,
    const aclTensor* logitOptional, const aclTensor* rowIndexOptional, int64_t dtype, float sharedInputWeight,
    int64_t sharedInputOffset, bool transposeX, bool transposeW, int64_t groupListType, const aclIntArray*,
    aclTensor* y, uint64_t* workspaceSize, aclOpExecutor** executor) {
  return first_stage(
      kV3,
      {x, w, scaleOptional, biasOptional, pertokenScaleOptional, groupListOptional, sharedInputOptional, logitOptional,
       rowIndexOptional, y, offsetOptional, antiquantScaleOptional, antiquantOffsetOptional},
      {dtype, sharedInputWeight, sharedInputOffset, transposeX, transposeW, groupListType, false, true}, workspaceSize,
      executor);
}

ANYNPU_SECOND_STAGE(aclnnGroupedMatmulFinalizeRoutingV3, kV3)

extern "C" aclnnStatus aclnnGroupedMatmulFinalizeRoutingWeightNzGetWorkspaceSize(
    const aclTensor* x, aclTensor* w, const aclTensor* scaleOptional, const aclTensor* biasOptional,
    const aclTensor* pertokenScaleOptional, const aclTensor* groupListOptional, const aclTensor* sharedInputOptional,
    const aclTensor* logitOptional, const aclTensor* rowIndexOptional, int64_t dtype, float sharedInputWeight,
    int64_t sharedInputOffset, bool transposeX, bool transposeW, int64_t groupListType, aclTensor* y,
    uint64_t* workspaceSize, aclOpExecutor** executor) {
  return first_stage(kWeightNz,
                     {x, w, scaleOptional, biasOptional, pertokenScaleOptional, groupListOptional, sharedInputOptional,
                      logitOptional, rowIndexOptional, y},
                     {dtype, sharedInputWeight, sharedInputOffset, transposeX, transposeW, groupListType, true, false},
                     workspaceSize, executor);
}

ANYNPU_SECOND_STAGE(aclnnGroupedMatmulFinalizeRoutingWeightNz, kWeightNz)

extern "C" aclnnStatus aclnnGroupedMatmulFinalizeRoutingWeightNzV2GetWorkspaceSize(
    const aclTensor* x, aclTensor* w, const aclTensor* scaleOptional, const aclTensor* biasOptional,
    const aclTensor* offsetOptional, const aclTensor* antiquantScaleOptional, const aclTensor* antiquantOffsetOptional,
    const aclTensor* pertokenScaleOptional, const aclTensor* groupListOptional, const aclTensor* sharedInputOptional,
    const aclTensor* logitOptional, const aclTensor* rowIndexOptional, int64_t dtype, float sharedInputWeight,
    int64_t sharedInputOffset, bool transposeX, bool transposeW, int64_t groupListType, const aclIntArray*,
    aclTensor* y, uint64_t* workspaceSize, aclOpExecutor** executor) {
  return first_stage(
      kWeightNzV2,
      {x, w, scaleOptional, biasOptional, pertokenScaleOptional, groupListOptional, sharedInputOptional, logitOptional,
       rowIndexOptional, y, offsetOptional, antiquantScaleOptional, antiquantOffsetOptional},
      {dtype, sharedInputWeight, sharedInputOffset, transposeX, transposeW, groupListType, true, true}, workspaceSize,
      executor);
}

ANYNPU_SECOND_STAGE(aclnnGroupedMatmulFinalizeRoutingWeightNzV2, kWeightNzV2)
