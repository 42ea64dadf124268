// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "acl/executor/executor.h"
#include "aclnnop/aclnn_grouped_matmul.h"
#include "aclnnop/aclnn_grouped_matmul_v2.h"
#include "aclnnop/aclnn_grouped_matmul_v3.h"
#include "aclnnop/aclnn_grouped_matmul_v4.h"
#include "aclnnop/aclnn_grouped_matmul_v5.h"
#include "core/status.h"
#include "ops/grouped_matmul/aclnn_groups.h"

namespace {

using anynpu::wide;
using anynpu::grouped::Args;
using Stage = anynpu::acl::FirstStage<Args>;

constexpr anynpu::acl::Operator version(const char* name) {
  return anynpu::acl::make_operator<Args, anynpu::grouped::check, anynpu::grouped::run>(name);
}

constexpr auto kV1 = version("aclnnGroupedMatmul");
constexpr auto kV2 = version("aclnnGroupedMatmulV2");
constexpr auto kV3 = version("aclnnGroupedMatmulV3");
constexpr auto kV4 = version("aclnnGroupedMatmulV4");
constexpr auto kV5 = version("aclnnGroupedMatmulV5");

// What all versions have.
struct Call {
  const aclTensorList *x, *weight, *bias, *scale, *offset, *antiquant_scale, *antiquant_offset, *out;
  int64_t split_item;
};

// What V4 and V5 have beyond it.
struct Newer {
  const aclTensorList* pertoken_scale;
  const aclTensor* group_list;
  const aclTensorList *activation_input, *activation_scale, *activation_offset;
  int64_t group_type, group_list_type, act_type;
  const aclTensorList *activation_out, *dynamic_scale_out;
};

void absent(Stage& stage, const char* name, const aclTensorList* list) {
  stage.require(stage.is_empty(name, list), "%s must be null or empty, what it asks for is not implemented", name);
}

void take(Stage& stage, const Call& call) {
  Args& args = stage.args;
  args.host_count = -1;
  args.x_count = stage.inputs("x", call.x, &Args::x);
  args.weight_count = stage.inputs("weight", call.weight, &Args::weight);
  args.bias_count = stage.optional_inputs("biasOptional", call.bias, &Args::bias);
  args.scale_count = stage.optional_inputs("scaleOptional", call.scale, &Args::scale);
  absent(stage, "offsetOptional", call.offset);
  args.antiquant_scale_count =
      stage.optional_inputs("antiquantScaleOptional", call.antiquant_scale, &Args::antiquant_scale);
  args.antiquant_offset_count =
      stage.optional_inputs("antiquantOffsetOptional", call.antiquant_offset, &Args::antiquant_offset);
}

// The results come behind the group list.
void take_results(Stage& stage, const char* name, const Call& call) {
  stage.args.y_count = stage.outputs(name, call.out, &Args::y);
  stage.require(call.split_item >= 0 && call.split_item <= 3, "splitItem must be 0, 1, 2 or 3, got %lld",
                wide(call.split_item));
  stage.args.split_result = call.split_item < 2;
}

void take_group_type(Stage& stage, int64_t group_type) {
  stage.require(group_type == -1 || group_type == 0 || group_type == 2,
                "groupType must be -1 (no groups), 0 (along M) or 2 (along K), got %lld", wide(group_type));
  stage.args.group_type = static_cast<int32_t>(group_type);
}

// Running sums in memory of the host; none when the array is null.
void take_sums(Stage& stage, const aclIntArray* array) {
  const std::vector<int64_t> sums = stage.ints("groupListOptional", array);
  stage.require(sums.size() <= anynpu::grouped::kMostTensors, "groupListOptional must hold at most %zu values, got %zu",
                anynpu::grouped::kMostTensors, sums.size());
  if (!stage.ok() || array == nullptr) return;
  std::copy(sums.begin(), sums.end(), stage.args.host_list);
  stage.args.host_count = static_cast<int64_t>(sums.size());
}

aclnnStatus newer(const anynpu::acl::Operator& op, const Call& call, const Newer& more, uint64_t* workspace_size,
                  aclOpExecutor** executor) {
  return anynpu::acl::first_stage<Args>(op, workspace_size, executor, [&](Stage& stage) {
    take(stage, call);
    stage.args.pertoken_scale_count =
        stage.optional_inputs("perTokenScaleOptional", more.pertoken_scale, &Args::pertoken_scale);
    stage.optional("groupListOptional", more.group_list, &Args::group_list);
    absent(stage, "activationInputOptional", more.activation_input);
    absent(stage, "activationQuantScaleOptional", more.activation_scale);
    absent(stage, "activationQuantOffsetOptional", more.activation_offset);
    take_results(stage, "out", call);
    absent(stage, "activationFeatureOutOptional", more.activation_out);
    absent(stage, "dynQuantScaleOutOptional", more.dynamic_scale_out);
    take_group_type(stage, more.group_type);
    stage.require(more.group_list_type >= 0 && more.group_list_type <= 2,
                  "groupListType must be 0 (running sums), 1 (counts) or 2 (pairs of group and count), got %lld",
                  wide(more.group_list_type));
    stage.args.group_list_type = static_cast<int32_t>(more.group_list_type);
    stage.require(more.act_type == 0, "actType must be 0, activations are not implemented, got %lld",
                  wide(more.act_type));
  });
}

}  // namespace

extern "C" aclnnStatus aclnnGroupedMatmulGetWorkspaceSize(
    const aclTensorList* x, const aclTensorList* weight, const aclTensorList* biasOptional,
    const aclTensorList* scaleOptional, const aclTensorList* offsetOptional,
    const aclTensorList* antiquantScaleOptional, const aclTensorList* antiquantOffsetOptional,
    const aclIntArray* groupListOptional, int64_t splitItem, const aclTensorList* y, uint64_t* workspaceSize,
    aclOpExecutor** executor) {
  const Call call{
      x, weight,   biasOptional, scaleOptional, offsetOptional, antiquantScaleOptional, antiquantOffsetOptional,
      y, splitItem};
  return anynpu::acl::first_stage<Args>(kV1, workspaceSize, executor, [&](Stage& stage) {
    take(stage, call);
    take_sums(stage, groupListOptional);
    take_results(stage, "y", call);
    const bool grouped = stage.args.host_count >= 0 || !stage.args.split_result;
    take_group_type(stage, grouped ? anynpu::grouped::kRows : anynpu::grouped::kNone);
  });
}

extern "C" aclnnStatus aclnnGroupedMatmulV2GetWorkspaceSize(
    const aclTensorList* x, const aclTensorList* weight, const aclTensorList* biasOptional,
    const aclTensorList* scaleOptional, const aclTensorList* offsetOptional,
    const aclTensorList* antiquantScaleOptional, const aclTensorList* antiquantOffsetOptional,
    const aclIntArray* groupListOptional, int64_t splitItem, int64_t groupType, const aclTensorList* y,
    uint64_t* workspaceSize, aclOpExecutor** executor) {
  const Call call{
      x, weight,   biasOptional, scaleOptional, offsetOptional, antiquantScaleOptional, antiquantOffsetOptional,
      y, splitItem};
  return anynpu::acl::first_stage<Args>(kV2, workspaceSize, executor, [&](Stage& stage) {
    take(stage, call);
    take_sums(stage, groupListOptional);
    take_results(stage, "y", call);
    take_group_type(stage, groupType);
  });
}

extern "C" aclnnStatus aclnnGroupedMatmulV3GetWorkspaceSize(
    const aclTensorList* x, const aclTensorList* weight, const aclTensorList* biasOptional,
    const aclTensorList* scaleOptional, const aclTensorList* offsetOptional,
    const aclTensorList* antiquantScaleOptional, const aclTensorList* antiquantOffsetOptional,
    const aclTensor* groupListOptional, int64_t splitItem, int64_t groupType, const aclTensorList* y,
    uint64_t* workspaceSize, aclOpExecutor** executor) {
  const Call call{
      x, weight,   biasOptional, scaleOptional, offsetOptional, antiquantScaleOptional, antiquantOffsetOptional,
      y, splitItem};
  return anynpu::acl::first_stage<Args>(kV3, workspaceSize, executor, [&](Stage& stage) {
    take(stage, call);
    stage.optional("groupListOptional", groupListOptional, &Args::group_list);
    take_results(stage, "y", call);
    take_group_type(stage, groupType);
  });
}

extern "C" aclnnStatus aclnnGroupedMatmulV4GetWorkspaceSize(
    const aclTensorList* x, const aclTensorList* weight, const aclTensorList* biasOptional,
    const aclTensorList* scaleOptional, const aclTensorList* offsetOptional,
    const aclTensorList* antiquantScaleOptional, const aclTensorList* antiquantOffsetOptional,
    const aclTensorList* perTokenScaleOptional, const aclTensor* groupListOptional,
    const aclTensorList* activationInputOptional, const aclTensorList* activationQuantScaleOptional,
    const aclTensorList* activationQuantOffsetOptional, int64_t splitItem, int64_t groupType, int64_t groupListType,
    int64_t actType, aclTensorList* out, aclTensorList* activationFeatureOutOptional,
    aclTensorList* dynQuantScaleOutOptional, uint64_t* workspaceSize, aclOpExecutor** executor) {
  return newer(kV4,
               {x, weight, biasOptional, scaleOptional, offsetOptional, antiquantScaleOptional, antiquantOffsetOptional,
                out, splitItem},
               {perTokenScaleOptional, groupListOptional, activationInputOptional, activationQuantScaleOptional,
                activationQuantOffsetOptional, groupType, groupListType, actType, activationFeatureOutOptional,
                dynQuantScaleOutOptional},
               workspaceSize, executor);
}

// tuningConfigOptional is a hint.
extern "C" aclnnStatus aclnnGroupedMatmulV5GetWorkspaceSize(
    const aclTensorList* x, const aclTensorList* weight, const aclTensorList* biasOptional,
    const aclTensorList* scaleOptional, const aclTensorList* offsetOptional,
    const aclTensorList* antiquantScaleOptional, const aclTensorList* antiquantOffsetOptional,
    const aclTensorList* perTokenScaleOptional, const aclTensor* groupListOptional,
    const aclTensorList* activationInputOptional, const aclTensorList* activationQuantScaleOptional,
    const aclTensorList* activationQuantOffsetOptional, int64_t splitItem, int64_t groupType, int64_t groupListType,
    int64_t actType, aclIntArray*, aclTensorList* out, aclTensorList* activationFeatureOutOptional,
    aclTensorList* dynQuantScaleOutOptional, uint64_t* workspaceSize, aclOpExecutor** executor) {
  return newer(kV5,
               {x, weight, biasOptional, scaleOptional, offsetOptional, antiquantScaleOptional, antiquantOffsetOptional,
                out, splitItem},
               {perTokenScaleOptional, groupListOptional, activationInputOptional, activationQuantScaleOptional,
                activationQuantOffsetOptional, groupType, groupListType, actType, activationFeatureOutOptional,
                dynQuantScaleOutOptional},
               workspaceSize, executor);
}

ANYNPU_SECOND_STAGE(aclnnGroupedMatmul, kV1)
ANYNPU_SECOND_STAGE(aclnnGroupedMatmulV2, kV2)
ANYNPU_SECOND_STAGE(aclnnGroupedMatmulV3, kV3)
ANYNPU_SECOND_STAGE(aclnnGroupedMatmulV4, kV4)
ANYNPU_SECOND_STAGE(aclnnGroupedMatmulV5, kV5)
