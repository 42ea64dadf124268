// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstring>
#include <memory>

#include "acl/executor/executor.h"
#include "aclnnop/aclnn_npu_format_cast.h"
#include "aclnnop/aclnn_trans_matmul_weight.h"
#include "core/status.h"
#include "core/tensor.h"

namespace {

using anynpu::wide;
using anynpu::acl::report;

using Cast = anynpu_format_cast_args;
struct Weight {
  anynpu_tensor weight;  // as it will be
};

anynpu_format_cast_args casting(const Weight& args, void* copy) {
  anynpu_format_cast_args made{args.weight, args.weight};
  made.x.format = ANYNPU_ND;
  made.x.data = copy;
  return made;
}

int32_t check_weight(const Weight* args, size_t* workspace_bytes) {
  const anynpu_format_cast_args call = casting(*args, nullptr);
  return anynpu_format_cast_check(&call, workspace_bytes);
}

int32_t run_weight(const Weight* args, void*, size_t) {
  const int64_t bytes = anynpu::element_count(args->weight) * anynpu::dtype_bits(args->weight.dtype) / 8;
  if (bytes == 0) return ANYNPU_OK;
  const std::unique_ptr<char[]> copy(new char[bytes]);
  std::memcpy(copy.get(), args->weight.data, bytes);
  const anynpu_format_cast_args call = casting(*args, copy.get());
  return anynpu_format_cast(&call, nullptr, 0);
}

constexpr auto kCast =
    anynpu::acl::make_operator<Cast, anynpu_format_cast_check, anynpu_format_cast>("aclnnNpuFormatCast");
constexpr auto kWeight = anynpu::acl::make_operator<Weight, check_weight, run_weight>("aclnnTransMatmulWeight");

bool is_weight(int32_t dtype) {
  return dtype == ANYNPU_FLOAT16 || dtype == ANYNPU_BFLOAT16 || dtype == ANYNPU_FLOAT32 || dtype == ANYNPU_INT8;
}

aclnnStatus weight_size(const char* call, const aclIntArray* shape, int32_t dtype, uint64_t* size) {
  return anynpu::acl::guarded(call, [&]() -> int32_t {
    std::vector<int64_t> axes;
    if (size == nullptr) return report(ACLNN_ERR_PARAM_NULLPTR, "%s: weightTensorSize is a null pointer", call);
    if (const int32_t status = anynpu::acl::values_of(call, "tensorShape", shape, &axes)) return status;
    if (!is_weight(dtype)) {
      return report(ACLNN_ERR_PARAM_INVALID, "%s: dataType must be FLOAT16, BF16, FLOAT or INT8, got %d", call, dtype);
    }
    if (axes.size() < 2 || axes.size() > 6) {
      return report(ACLNN_ERR_PARAM_INVALID, "%s: tensorShape must have 2 to 6 axes, got %zu", call, axes.size());
    }
    anynpu_tensor weight = {};
    weight.dtype = dtype;
    weight.ndim = static_cast<int32_t>(axes.size());
    std::copy(axes.begin(), axes.end(), weight.shape);
    anynpu::make_contiguous(weight);
    const int64_t count =
        anynpu::element_count(weight) < 0 ? -1 : anynpu::element_count(anynpu::acl::blocks_of(weight));
    if (count < 0) {
      return report(ACLNN_ERR_PARAM_INVALID, "%s: tensorShape must be that of a tensor, got %s", call,
                    anynpu::shape_text(weight));
    }
    *size = static_cast<uint64_t>(count);
    return ACLNN_SUCCESS;
  });
}

}  // namespace

extern "C" aclnnStatus aclnnCalculateMatmulWeightSize(const aclIntArray* tensorShape, uint64_t* weightTensorSize) {
  return weight_size("aclnnCalculateMatmulWeightSize", tensorShape, ANYNPU_FLOAT16, weightTensorSize);
}

extern "C" aclnnStatus aclnnCalculateMatmulWeightSizeV2(const aclIntArray* tensorShape, aclDataType dataType,
                                                        uint64_t* weightTensorSize) {
  return weight_size("aclnnCalculateMatmulWeightSizeV2", tensorShape, dataType, weightTensorSize);
}

extern "C" aclnnStatus aclnnTransMatmulWeightGetWorkspaceSize(aclTensor* mmWeightRef, uint64_t* workspaceSize,
                                                              aclOpExecutor** executor) {
  const auto fill = [&](auto& stage) {
    stage.output_in_blocks("mmWeightRef", mmWeightRef, &Weight::weight);
    stage.require(is_weight(stage.args.weight.dtype), "mmWeightRef must be float16, bfloat16, float32 or int8, got %s",
                  anynpu::dtype_name(stage.args.weight.dtype));
  };
  const aclnnStatus status = anynpu::acl::first_stage<Weight>(kWeight, workspaceSize, executor, fill);
  if (status == ACLNN_SUCCESS) anynpu::acl::put_in_blocks(mmWeightRef);
  return status;
}

ANYNPU_SECOND_STAGE(aclnnTransMatmulWeight, kWeight)

// The kernels want the width of blocks that the dtype of the tensor has, whatever is computed with it.
extern "C" aclnnStatus aclnnNpuFormatCastCalculateSizeAndFormat(const aclTensor* srcTensor, const int dstFormat,
                                                                const int, int64_t** dstShape, uint64_t* dstShapeSize,
                                                                int* actualFormat) {
  constexpr const char* kCall = "aclnnNpuFormatCastCalculateSizeAndFormat";
  return anynpu::acl::guarded(kCall, [&]() -> int32_t {
    if (dstShape == nullptr || dstShapeSize == nullptr || actualFormat == nullptr) {
      return report(ACLNN_ERR_PARAM_NULLPTR, "%s: a result pointer is null", kCall);
    }
    anynpu_tensor view;
    if (const int32_t status = anynpu::acl::view_of(kCall, "srcTensor", srcTensor, &view)) return status;
    if (dstFormat != ANYNPU_ND && dstFormat != ANYNPU_FRACTAL_NZ) {
      return report(ACLNN_ERR_PARAM_INVALID, "%s: dstFormat must be ND (2) or FRACTAL_NZ (29), got %d", kCall,
                    dstFormat);
    }
    if (view.ndim < 2 || view.ndim > 6) {
      return report(ACLNN_ERR_PARAM_INVALID, "%s: srcTensor must have 2 to 6 axes, got %d", kCall, view.ndim);
    }
    if (dstFormat == ANYNPU_FRACTAL_NZ) {
      view.nz_c0 = 0;
      view = anynpu::acl::blocks_of(view);
    }
    *dstShape = new int64_t[view.ndim];
    std::copy_n(view.shape, view.ndim, *dstShape);
    *dstShapeSize = static_cast<uint64_t>(view.ndim);
    *actualFormat = dstFormat;
    return ACLNN_SUCCESS;
  });
}

extern "C" aclnnStatus aclnnNpuFormatCastGetWorkspaceSize(const aclTensor* srcTensor, aclTensor* dstTensor,
                                                          uint64_t* workspaceSize, aclOpExecutor** executor) {
  return anynpu::acl::first_stage<Cast>(kCast, workspaceSize, executor, [&](auto& stage) {
    stage.input("srcTensor", srcTensor, &Cast::x);
    stage.output("dstTensor", dstTensor, &Cast::y);
  });
}

ANYNPU_SECOND_STAGE(aclnnNpuFormatCast, kCast)
