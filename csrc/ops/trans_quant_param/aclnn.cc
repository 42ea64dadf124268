// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <memory>

#include "acl/executor/executor.h"
#include "aclnnop/aclnn_trans_quant_param.h"
#include "aclnnop/aclnn_trans_quant_param_v2.h"
#include "aclnnop/aclnn_trans_quant_param_v3.h"
#include "core/status.h"

namespace {

using Args = anynpu_trans_quant_param_args;
using Stage = anynpu::acl::FirstStage<Args>;

constexpr auto kV2 = anynpu::acl::make_operator<Args, anynpu_trans_quant_param_check, anynpu_trans_quant_param>(
    "aclnnTransQuantParamV2");
constexpr auto kV3 = anynpu::acl::make_operator<Args, anynpu_trans_quant_param_check, anynpu_trans_quant_param>(
    "aclnnTransQuantParamV3");

aclnnStatus first_stage(const anynpu::acl::Operator& op, const aclTensor* scale, const aclTensor* offset,
                        int64_t round_mode, const aclTensor* out, uint64_t* workspace_size, aclOpExecutor** executor) {
  return anynpu::acl::first_stage<Args>(op, workspace_size, executor, [&](Stage& stage) {
    stage.input("scale", scale, &Args::scale);
    stage.optional("offset", offset, &Args::offset);
    stage.output("out", out, &Args::param);
    stage.require(round_mode == 0 || round_mode == 1, "trans_quant_param: round_mode must be 0 or 1, got %lld",
                  anynpu::wide(round_mode));
    stage.args.round_mode = static_cast<int32_t>(round_mode);
  });
}

constexpr uint64_t kMostValues = uint64_t{1} << 28;  // as of the arrays of acl_meta.h

anynpu_tensor values(int32_t dtype, const void* data, uint64_t size) {
  return {const_cast<void*>(data), dtype, ANYNPU_ND, 1, 0, {static_cast<int64_t>(size)}, {1}};
}

}  // namespace

// Of the host: it has one stage.
extern "C" aclnnStatus aclnnTransQuantParam(const float* scaleArray, uint64_t scaleSize, const float* offsetArray,
                                            uint64_t offsetSize, uint64_t** quantParam, uint64_t* quantParamSize) {
  using anynpu::acl::report;
  constexpr const char* kCall = "aclnnTransQuantParam";
  return anynpu::acl::guarded(kCall, [&]() -> int32_t {
    if (scaleArray == nullptr || quantParam == nullptr || quantParamSize == nullptr) {
      return report(ACLNN_ERR_PARAM_NULLPTR, "%s: %s is a null pointer", kCall,
                    scaleArray == nullptr ? "scaleArray" : "a result pointer");
    }
    if ((offsetArray == nullptr) != (offsetSize == 0) || std::max(scaleSize, offsetSize) > kMostValues) {
      return report(ACLNN_ERR_PARAM_INVALID,
                    "%s: scaleSize and offsetSize must be at most %llu, and offsetSize 0 without offsetArray, got %llu "
                    "and %llu",
                    kCall, static_cast<unsigned long long>(kMostValues), static_cast<unsigned long long>(scaleSize),
                    static_cast<unsigned long long>(offsetSize));
    }
    const uint64_t size = std::max(scaleSize, offsetSize);
    std::unique_ptr<uint64_t[]> words(new uint64_t[size]);
    Args args = {};
    args.scale = values(ANYNPU_FLOAT32, scaleArray, scaleSize);
    if (offsetArray != nullptr) args.offset = values(ANYNPU_FLOAT32, offsetArray, offsetSize);
    args.param = values(ANYNPU_UINT64, words.get(), size);
    if (anynpu_trans_quant_param(&args, nullptr, 0) != ANYNPU_OK) {
      return report(ACLNN_ERR_PARAM_INVALID, "%s: %s", kCall, anynpu_last_error());
    }
    *quantParam = words.release();
    *quantParamSize = size;
    return ACLNN_SUCCESS;
  });
}

extern "C" aclnnStatus aclnnTransQuantParamV2GetWorkspaceSize(const aclTensor* scale, const aclTensor* offset,
                                                              const aclTensor* out, uint64_t* workspaceSize,
                                                              aclOpExecutor** executor) {
  return first_stage(kV2, scale, offset, 0, out, workspaceSize, executor);
}

ANYNPU_SECOND_STAGE(aclnnTransQuantParamV2, kV2)

extern "C" aclnnStatus aclnnTransQuantParamV3GetWorkspaceSize(const aclTensor* scale, const aclTensor* offset,
                                                              int64_t roundMode, const aclTensor* out,
                                                              uint64_t* workspaceSize, aclOpExecutor** executor) {
  return first_stage(kV3, scale, offset, roundMode, out, workspaceSize, executor);
}

ANYNPU_SECOND_STAGE(aclnnTransQuantParamV3, kV3)
