// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "core/parallel.h"
#include "core/quant_param.h"
#include "core/strided.h"

namespace anynpu {
namespace {

constexpr const char* kOp = "trans_quant_param";
constexpr int64_t kTile = 512;
constexpr int64_t kGrain = 16;  // tiles a thread

int32_t check_input(const char* name, const anynpu_tensor& tensor) {
  ANYNPU_TRY(check_tensor(kOp, name, tensor));
  ANYNPU_TRY(check_dtype(kOp, name, tensor, {ANYNPU_FLOAT32}));
  if (tensor.format != ANYNPU_ND || !(tensor.ndim == 1 || (tensor.ndim == 2 && tensor.shape[0] == 1))) {
    return fail(ANYNPU_BAD_SHAPE, "%s: %s must be ND of shape (n,) or (1, n), got %s", kOp, name, shape_text(tensor));
  }
  if (element_count(tensor) == 0) {
    return fail(ANYNPU_BAD_SHAPE, "%s: %s must not be empty, got shape %s", kOp, name, shape_text(tensor));
  }
  return check_strides(kOp, name, tensor, Access::read);
}

int32_t check(const anynpu_trans_quant_param_args& args) {
  const anynpu_tensor &scale = args.scale, &offset = args.offset, &param = args.param;
  ANYNPU_TRY(check_required(kOp, "scale", scale));
  ANYNPU_TRY(check_required(kOp, "param", param));
  ANYNPU_TRY(check_input("scale", scale));
  anynpu_tensor expected = scale;
  const int last = scale.ndim - 1;
  if (present(offset)) {
    ANYNPU_TRY(check_input("offset", offset));
    const bool fits = offset.ndim == scale.ndim &&
                      (offset.shape[last] == 1 || scale.shape[last] == 1 || offset.shape[last] == scale.shape[last]);
    if (!fits) {
      return fail(ANYNPU_BAD_SHAPE,
                  "%s: offset must have the axes of scale and its size or 1, or scale's size is 1; "
                  "scale is %s, got %s",
                  kOp, shape_text(scale), shape_text(offset));
    }
    expected.shape[last] = std::max(scale.shape[last], offset.shape[last]);
  }
  if (args.round_mode != 0 && args.round_mode != 1) {
    return fail(ANYNPU_BAD_SHAPE, "%s: round_mode must be 0 or 1, got %d", kOp, args.round_mode);
  }
  ANYNPU_TRY(check_dtype(kOp, "param", param, {ANYNPU_INT64, ANYNPU_UINT64}));
  ANYNPU_TRY(check_shape(kOp, "param", param, expected));
  if (param.format != ANYNPU_ND) return fail(ANYNPU_BAD_SHAPE, "%s: param must be ND", kOp);
  return check_strides(kOp, "param", param, Access::write);
}

// The view with its last axis repeated to `size`.
anynpu_tensor broadcast(const anynpu_tensor& tensor, int64_t size) {
  anynpu_tensor view = tensor;
  const int last = tensor.ndim - 1;
  if (view.shape[last] == 1) view.strides[last] = 0;
  view.shape[last] = size;
  return view;
}

void run(const anynpu_trans_quant_param_args& args) {
  const int64_t size = element_count(args.param);
  const bool has_offset = present(args.offset);
  const anynpu_tensor scale = broadcast(args.scale, size);
  const anynpu_tensor offset = has_offset ? broadcast(args.offset, size) : anynpu_tensor{};
  parallel_for((size + kTile - 1) / kTile, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t first = begin * kTile; first < std::min(end * kTile, size); first += kTile) {
      const int64_t count = std::min(kTile, size - first);
      float scales[kTile], offsets[kTile] = {};
      int64_t words[kTile];
      gather(scale, first, count, scales);
      if (has_offset) gather(offset, first, count, offsets);
      for (int64_t i = 0; i < count; ++i) words[i] = encode_quant_param(scales[i], offsets[i], args.round_mode == 1);
      scatter(words, args.param, first, count);
    }
  });
}

}  // namespace
}  // namespace anynpu

extern "C" int32_t anynpu_trans_quant_param_check(const anynpu_trans_quant_param_args* args, size_t* workspace_bytes) {
  if (args == nullptr || workspace_bytes == nullptr) {
    return anynpu::fail(ANYNPU_NULL_ARG, "trans_quant_param: null argument");
  }
  *workspace_bytes = 0;
  return anynpu::check(*args);
}

extern "C" int32_t anynpu_trans_quant_param(const anynpu_trans_quant_param_args* args, void*, size_t) {
  size_t workspace_bytes = 0;
  ANYNPU_TRY(anynpu_trans_quant_param_check(args, &workspace_bytes));
  ANYNPU_TRY(anynpu::check_data(anynpu::kOp, "scale", args->scale));
  ANYNPU_TRY(anynpu::check_data(anynpu::kOp, "offset", args->offset));
  ANYNPU_TRY(anynpu::check_data(anynpu::kOp, "param", args->param));
  anynpu::run(*args);
  return ANYNPU_OK;
}
