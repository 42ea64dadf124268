// SPDX-License-Identifier: Apache-2.0
#include "acl/executor/executor.h"
#include "aclnnop/aclnn_moe_init_routing_quant_v2.h"
#include "aclnnop/aclnn_moe_init_routing_v2.h"
#include "aclnnop/aclnn_moe_init_routing_v3.h"
#include "core/status.h"

namespace {

using anynpu::wide;
using Args = anynpu_moe_init_routing_args;
using Stage = anynpu::acl::FirstStage<Args>;

constexpr anynpu::acl::Operator version(const char* name) {
  return anynpu::acl::make_operator<Args, anynpu_moe_init_routing_check, anynpu_moe_init_routing>(
      name, anynpu::acl::Views::copied);
}

constexpr auto kV2 = version("aclnnMoeInitRoutingV2");
constexpr auto kQuantV2 = version("aclnnMoeInitRoutingQuantV2");
constexpr auto kV3 = version("aclnnMoeInitRoutingV3");

// The struct has 32 bits for a mode; values that do not fit are none of its modes.
int32_t narrowed(int64_t mode) { return mode == static_cast<int32_t>(mode) ? static_cast<int32_t>(mode) : INT32_MIN; }

struct Rows {
  int64_t active_num, expert_capacity, expert_num, drop_pad_mode;
};

// The rows of expandedXOut that the attributes ask for; the kernels take any number.
void check_rows(Stage& stage, const Rows& rows) {
  const anynpu_tensor &x = stage.args.x, &ids = stage.args.expert_idx, &y = stage.args.expanded_x;
  if (!stage.ok() || x.ndim != 2 || ids.ndim != 2) return;
  if (rows.drop_pad_mode == 1) {
    stage.require(rows.expert_capacity >= 1 && rows.expert_capacity <= x.shape[0],
                  "expert_capacity must be in [1, N] = [1, %lld] with drop_pad_mode 1, got %lld", wide(x.shape[0]),
                  wide(rows.expert_capacity));
    stage.require(y.ndim != 3 || y.shape[1] == rows.expert_capacity,
                  "expandedXOut must have %lld rows an expert, got %lld", wide(rows.expert_capacity), wide(y.shape[1]));
    return;
  }
  const int64_t slots = ids.shape[0] * ids.shape[1];
  const int64_t wanted = rows.active_num > 0 && rows.active_num < slots ? rows.active_num : slots;
  stage.require(y.ndim != 2 || y.shape[0] == wanted, "expandedXOut must have %lld rows, got %lld", wide(wanted),
                wide(y.shape[0]));
}

void take_inputs(Stage& stage, const aclTensor* x, const aclTensor* expert_idx, const Rows& rows) {
  stage.input("x", x, &Args::x);
  stage.input("expertIdx", expert_idx, &Args::expert_idx);
  stage.args.expert_num = rows.expert_num;
  stage.args.last_expert = rows.expert_num;
  stage.args.drop_pad_mode = narrowed(rows.drop_pad_mode);
}

// Flags of V2: 0 nothing, 1 running sums, 2 counts; when padded, counts of all tokens if before_capacity is set.
struct Counts {
  int64_t flag;
  bool before_capacity;
  const aclTensor *sums_or_counts, *all;
};

void take_counts(Stage& stage, const Counts& counts, bool padded) {
  stage.require(counts.flag >= 0 && counts.flag <= 2,
                "expertTokensCountOrCumsumFlagOptional must be 0, 1 or 2, got %lld", wide(counts.flag));
  const bool own = !padded && counts.flag != 0, all = padded && counts.before_capacity;
  const auto take = [&](const char* name, const aclTensor* tensor, bool written) {
    written ? stage.output(name, tensor, &Args::expert_tokens) : stage.unused(name, tensor);
  };
  take("expertTokensCountOrCumsumOutOptional", counts.sums_or_counts, own);
  take("expertTokensBeforeCapacityOutOptional", counts.all, all);
  stage.args.expert_tokens_num_type = counts.flag == 1 ? 0 : 1;
}

void take_range(Stage& stage, const aclIntArray* range) {
  uint64_t size = 0;
  if (range == nullptr) return;
  if (aclGetIntArraySize(range, &size) == ACLNN_SUCCESS && size == 0) return;
  int64_t ends[2] = {};
  stage.ints("activeExpertRangeOptional", range, ends, 2);
  stage.args.first_expert = ends[0];
  stage.args.last_expert = ends[1];
}

}  // namespace

extern "C" aclnnStatus aclnnMoeInitRoutingV2GetWorkspaceSize(
    const aclTensor* x, const aclTensor* expertIdx, int64_t activeNumOptional, int64_t expertCapacityOptional,
    int64_t expertNumOptional, int64_t dropPadModeOptional, int64_t expertTokensCountOrCumsumFlagOptional,
    bool expertTokensBeforeCapacityFlagOptional, const aclTensor* expandedXOut, const aclTensor* expandedRowIdxOut,
    const aclTensor* expertTokensCountOrCumsumOutOptional, const aclTensor* expertTokensBeforeCapacityOutOptional,
    uint64_t* workspaceSize, aclOpExecutor** executor) {
  return anynpu::acl::first_stage<Args>(kV2, workspaceSize, executor, [&](Stage& stage) {
    const Rows rows{activeNumOptional, expertCapacityOptional, expertNumOptional, dropPadModeOptional};
    take_inputs(stage, x, expertIdx, rows);
    stage.output("expandedXOut", expandedXOut, &Args::expanded_x);
    stage.output("expandedRowIdxOut", expandedRowIdxOut, &Args::expanded_row_idx);
    take_counts(stage,
                {expertTokensCountOrCumsumFlagOptional, expertTokensBeforeCapacityFlagOptional,
                 expertTokensCountOrCumsumOutOptional, expertTokensBeforeCapacityOutOptional},
                dropPadModeOptional == 1);
    stage.args.quant_mode = -1;
    check_rows(stage, rows);
  });
}

ANYNPU_SECOND_STAGE(aclnnMoeInitRoutingV2, kV2)

extern "C" aclnnStatus aclnnMoeInitRoutingQuantV2GetWorkspaceSize(
    const aclTensor* x, const aclTensor* expertIdx, const aclTensor* scaleOptional, const aclTensor* offsetOptional,
    int64_t activeNum, int64_t expertCapacity, int64_t expertNum, int64_t dropPadMode,
    int64_t expertTokensCountOrCumsumFlag, bool expertTokensBeforeCapacityFlag, int64_t quantMode,
    const aclTensor* expandedXOut, const aclTensor* expandedRowIdxOut, const aclTensor* expertTokensCountOrCumsumOut,
    const aclTensor* expertTokensBeforeCapacityOut, const aclTensor* dynamicQuantScaleOut, uint64_t* workspaceSize,
    aclOpExecutor** executor) {
  return anynpu::acl::first_stage<Args>(kQuantV2, workspaceSize, executor, [&](Stage& stage) {
    const Rows rows{activeNum, expertCapacity, expertNum, dropPadMode};
    take_inputs(stage, x, expertIdx, rows);
    stage.optional("scaleOptional", scaleOptional, &Args::scale);
    stage.optional("offsetOptional", offsetOptional, &Args::offset);
    stage.output("expandedXOut", expandedXOut, &Args::expanded_x);
    stage.output("expandedRowIdxOut", expandedRowIdxOut, &Args::expanded_row_idx);
    take_counts(stage,
                {expertTokensCountOrCumsumFlag, expertTokensBeforeCapacityFlag, expertTokensCountOrCumsumOut,
                 expertTokensBeforeCapacityOut},
                dropPadMode == 1);
    stage.require(quantMode == 0 || quantMode == 1, "quantMode must be 0 (static) or 1 (dynamic), got %lld",
                  wide(quantMode));
    if (quantMode == 1) {
      stage.output("dynamicQuantScaleOut", dynamicQuantScaleOut, &Args::expanded_scale);
    } else {
      stage.unused("dynamicQuantScaleOut", dynamicQuantScaleOut);
    }
    stage.args.quant_mode = narrowed(quantMode);
    check_rows(stage, rows);
  });
}

ANYNPU_SECOND_STAGE(aclnnMoeInitRoutingQuantV2, kQuantV2)

extern "C" aclnnStatus aclnnMoeInitRoutingV3GetWorkspaceSize(
    const aclTensor* x, const aclTensor* expertIdx, const aclTensor* scaleOptional, const aclTensor* offsetOptional,
    int64_t activeNum, int64_t expertCapacity, int64_t expertNum, int64_t dropPadMode, int64_t expertTokensNumType,
    bool, int64_t quantMode, const aclIntArray* activeExpertRangeOptional, int64_t rowIdxType,
    const aclTensor* expandedXOut, const aclTensor* expandedRowIdxOut, const aclTensor* expertTokensCountOrCumsumOut,
    const aclTensor* expandedScaleOut, uint64_t* workspaceSize, aclOpExecutor** executor) {
  return anynpu::acl::first_stage<Args>(kV3, workspaceSize, executor, [&](Stage& stage) {
    const Rows rows{activeNum, expertCapacity, expertNum, dropPadMode};
    take_inputs(stage, x, expertIdx, rows);
    stage.optional("scaleOptional", scaleOptional, &Args::scale);
    stage.optional("offsetOptional", offsetOptional, &Args::offset);
    take_range(stage, activeExpertRangeOptional);
    stage.output("expandedXOut", expandedXOut, &Args::expanded_x);
    stage.output("expandedRowIdxOut", expandedRowIdxOut, &Args::expanded_row_idx);
    stage.output("expertTokensCountOrCumsumOut", expertTokensCountOrCumsumOut, &Args::expert_tokens);
    stage.output("expandedScaleOut", expandedScaleOut, &Args::expanded_scale);
    stage.args.expert_tokens_num_type = narrowed(expertTokensNumType);
    stage.args.quant_mode = narrowed(quantMode);
    stage.args.row_idx_type = narrowed(rowIdxType);
    check_rows(stage, rows);
  });
}

ANYNPU_SECOND_STAGE(aclnnMoeInitRoutingV3, kV3)
