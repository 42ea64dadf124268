// SPDX-License-Identifier: Apache-2.0
// One x and one weight with the matrices of all groups, by the kernels of grouped_matmul_combine: their int32 sums, or their
// float32 results rounded to 16 bits, as src/anynpu/ops/grouped_matmul/composite.py calls them.
#include <algorithm>
#include <memory>
#include <numeric>

#include "acl/executor/executor.h"
#include "aclnnop/aclnn_grouped_matmul_v4.h"
#include "aclnnop/aclnn_grouped_matmul_v5.h"
#include "core/tensor.h"

namespace {

using anynpu::wide;

struct Args {
  anynpu_tensor x, weight, bias, scale, pertoken_scale, group_list, y;
  int32_t group_list_type;
};
using Stage = anynpu::acl::FirstStage<Args>;

anynpu_tensor contiguous(int32_t dtype, int32_t ndim, const int64_t* shape, void* data) {
  anynpu_tensor tensor = {};
  tensor.data = data;
  tensor.dtype = dtype;
  tensor.format = ANYNPU_ND;
  tensor.ndim = ndim;
  std::copy_n(shape, ndim, tensor.shape);
  anynpu::make_contiguous(tensor);
  return tensor;
}

// The same call of the kernels; results that are not sums go to `y`, row by row.
anynpu_grouped_matmul_combine_args combine(const Args& args, float* y, int64_t* rows) {
  anynpu_grouped_matmul_combine_args made = {};
  made.x = args.x;
  made.weight = args.weight;
  made.scale = args.scale;
  made.group_list = args.group_list;
  made.bias = args.bias;
  made.pertoken_scale = args.pertoken_scale;
  made.y = args.y;
  made.group_list_type = args.group_list_type;
  if (args.y.dtype == ANYNPU_INT32) return made;
  made.y = contiguous(ANYNPU_FLOAT32, args.y.ndim, args.y.shape, y);
  made.row_index = contiguous(ANYNPU_INT64, 1, args.y.shape, rows);
  return made;
}

int32_t check(const Args* args, size_t* workspace_bytes) {
  const auto combined = combine(*args, nullptr, nullptr);
  return anynpu_grouped_matmul_combine_check(&combined, workspace_bytes);
}

int32_t run(const Args* args, void* workspace, size_t workspace_bytes) {
  std::unique_ptr<float[]> y;
  std::unique_ptr<int64_t[]> rows;
  if (args->y.dtype != ANYNPU_INT32) {
    y.reset(new float[anynpu::element_count(args->y)]);
    rows.reset(new int64_t[args->y.shape[0]]);
    std::iota(rows.get(), rows.get() + args->y.shape[0], int64_t{0});
  }
  const auto combined = combine(*args, y.get(), rows.get());
  const int32_t status = anynpu_grouped_matmul_combine(&combined, workspace, workspace_bytes);
  if (status != ANYNPU_OK || !y) return status;
  const anynpu_cast_args rounded{combined.y, args->y};
  return anynpu_cast(&rounded, nullptr, 0);
}

constexpr auto kV4 = anynpu::acl::make_operator<Args, check, run>("aclnnGroupedMatmulV4");
constexpr auto kV5 = anynpu::acl::make_operator<Args, check, run>("aclnnGroupedMatmulV5");

void check_out(Stage& stage) {
  const anynpu_tensor &x = stage.args.x, &y = stage.args.y;
  stage.require(x.dtype == ANYNPU_INT8, "x must be int8, other products are not implemented, got %s",
                anynpu::dtype_name(x.dtype));
  stage.require(y.dtype == ANYNPU_INT32 || y.dtype == ANYNPU_FLOAT16 || y.dtype == ANYNPU_BFLOAT16,
                "out must be int32, float16 or bfloat16, got %s", anynpu::dtype_name(y.dtype));
  stage.require(y.dtype != ANYNPU_INT32 || !anynpu::present(stage.args.scale),
                "scaleOptional must be null or empty with int32 out");
  stage.require(x.ndim == 2 && y.ndim == 2 && x.shape[0] == y.shape[0] && y.format == ANYNPU_ND,
                "x must have shape (M, K) and out (M, N), got %s and %s", anynpu::shape_text(x), anynpu::shape_text(y));
}

void check_attributes(Stage& stage, int64_t split_item, int64_t group_type, int64_t group_list_type, int64_t act_type) {
  stage.require(split_item == 2 || split_item == 3, "splitItem must be 2 or 3 (one result), got %lld",
                wide(split_item));
  stage.require(group_type == 0, "groupType must be 0 (groups of rows), others are not implemented, got %lld",
                wide(group_type));
  stage.require(group_list_type == 0 || group_list_type == 1,
                "groupListType must be 0 (running sums) or 1 (counts), got %lld", wide(group_list_type));
  stage.require(act_type == 0, "actType must be 0, activations are not implemented, got %lld", wide(act_type));
  stage.args.group_list_type = static_cast<int32_t>(group_list_type);
}

// The arguments of both versions.
struct Call {
  const aclTensorList *x, *weight, *bias, *scale, *offset, *antiquant_scale, *antiquant_offset, *pertoken_scale;
  const aclTensor* group_list;
  const aclTensorList *activation_input, *activation_scale, *activation_offset;
  int64_t split_item, group_type, group_list_type, act_type;
  const aclTensorList *out, *activation_out, *dynamic_scale_out;
};

aclnnStatus grouped(const anynpu::acl::Operator& op, const Call& call, uint64_t* workspace_size,
                    aclOpExecutor** executor) {
  return anynpu::acl::first_stage<Args>(op, workspace_size, executor, [&](Stage& stage) {
    const auto absent = [&stage](const char* name, const aclTensorList* list) {
      const bool empty = stage.only(name, list) == nullptr;
      stage.require(empty, "%s must be null or empty, what it asks for is not implemented", name);
    };
    stage.input("x", stage.only("x", call.x), &Args::x);
    stage.input("weight", stage.only("weight", call.weight), &Args::weight);
    stage.optional("biasOptional", stage.only("biasOptional", call.bias), &Args::bias);
    stage.optional("scaleOptional", stage.only("scaleOptional", call.scale), &Args::scale);
    absent("offsetOptional", call.offset);
    absent("antiquantScaleOptional", call.antiquant_scale);
    absent("antiquantOffsetOptional", call.antiquant_offset);
    stage.optional("perTokenScaleOptional", stage.only("perTokenScaleOptional", call.pertoken_scale),
                   &Args::pertoken_scale);
    stage.input("groupListOptional", call.group_list, &Args::group_list);
    absent("activationInputOptional", call.activation_input);
    absent("activationQuantScaleOptional", call.activation_scale);
    absent("activationQuantOffsetOptional", call.activation_offset);
    stage.output("out", stage.only("out", call.out), &Args::y);
    absent("activationFeatureOutOptional", call.activation_out);
    absent("dynQuantScaleOutOptional", call.dynamic_scale_out);
    check_out(stage);
    check_attributes(stage, call.split_item, call.group_type, call.group_list_type, call.act_type);
  });
}

}  // namespace

extern "C" aclnnStatus aclnnGroupedMatmulV4GetWorkspaceSize(
    const aclTensorList* x, const aclTensorList* weight, const aclTensorList* biasOptional,
    const aclTensorList* scaleOptional, const aclTensorList* offsetOptional,
    const aclTensorList* antiquantScaleOptional, const aclTensorList* antiquantOffsetOptional,
    const aclTensorList* perTokenScaleOptional, const aclTensor* groupListOptional,
    const aclTensorList* activationInputOptional, const aclTensorList* activationQuantScaleOptional,
    const aclTensorList* activationQuantOffsetOptional, int64_t splitItem, int64_t groupType, int64_t groupListType,
    int64_t actType, aclTensorList* out, aclTensorList* activationFeatureOutOptional,
    aclTensorList* dynQuantScaleOutOptional, uint64_t* workspaceSize, aclOpExecutor** executor) {
  return grouped(kV4,
                 {x, weight, biasOptional, scaleOptional, offsetOptional, antiquantScaleOptional,
                  antiquantOffsetOptional, perTokenScaleOptional, groupListOptional, activationInputOptional,
                  activationQuantScaleOptional, activationQuantOffsetOptional, splitItem, groupType, groupListType,
                  actType, out, activationFeatureOutOptional, dynQuantScaleOutOptional},
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
  return grouped(kV5,
                 {x, weight, biasOptional, scaleOptional, offsetOptional, antiquantScaleOptional,
                  antiquantOffsetOptional, perTokenScaleOptional, groupListOptional, activationInputOptional,
                  activationQuantScaleOptional, activationQuantOffsetOptional, splitItem, groupType, groupListType,
                  actType, out, activationFeatureOutOptional, dynQuantScaleOutOptional},
                 workspaceSize, executor);
}

extern "C" aclnnStatus aclnnGroupedMatmulV4(void* workspace, uint64_t workspaceSize, aclOpExecutor* executor,
                                            aclrtStream stream) {
  return launch(kV4, workspace, workspaceSize, executor, stream);
}

extern "C" aclnnStatus aclnnGroupedMatmulV5(void* workspace, uint64_t workspaceSize, aclOpExecutor* executor,
                                            aclrtStream stream) {
  return launch(kV5, workspace, workspaceSize, executor, stream);
}
