// SPDX-License-Identifier: Apache-2.0
// What picks the next token from logits: softmax, by the kernel of moe_gating_topk_softmax, and the largest values of rows.
#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>

#include "acl/executor/executor.h"
#include "aclnnop/aclnn_argmax.h"
#include "aclnnop/aclnn_softmax.h"
#include "aclnnop/aclnn_topk.h"
#include "core/tensor.h"

namespace {

using anynpu::wide;
using anynpu::acl::copy_view;

struct Softmax {
  anynpu_tensor x, y;
};
struct Choice {
  anynpu_tensor x, values, indices;
  int64_t count;
  bool largest;
};

// The axis at the end, where rows have it.
anynpu_tensor moved(anynpu_tensor tensor, int64_t axis) {
  std::rotate(tensor.shape + axis, tensor.shape + axis + 1, tensor.shape + tensor.ndim);
  std::rotate(tensor.strides + axis, tensor.strides + axis + 1, tensor.strides + tensor.ndim);
  return tensor;
}

anynpu_tensor like(anynpu_tensor tensor, int32_t dtype, void* data) {
  tensor.dtype = dtype;
  tensor.data = data;
  anynpu::make_contiguous(tensor);
  return tensor;
}

// The same contiguous tensor with two axes, the last of them `length` long.
anynpu_tensor rows_of(anynpu_tensor tensor, int64_t length) {
  const int64_t rows = anynpu::element_count(tensor) / length;
  tensor.ndim = 2;
  tensor.shape[0] = rows;
  tensor.shape[1] = length;
  anynpu::make_contiguous(tensor);
  return tensor;
}

int32_t check_float(const char* name, const anynpu_tensor& tensor) {
  if (tensor.dtype == ANYNPU_FLOAT32 || tensor.dtype == ANYNPU_FLOAT16 || tensor.dtype == ANYNPU_BFLOAT16) {
    return ANYNPU_OK;
  }
  return anynpu::fail(ANYNPU_BAD_DTYPE, "%s must be float32, float16 or bfloat16, got %s", name,
                      anynpu::dtype_name(tensor.dtype));
}

int32_t check_softmax(const Softmax* args, size_t* workspace_bytes) {
  if (const int32_t status = check_float("self", args->x)) return status;
  if (const int32_t status = check_float("out", args->y)) return status;
  const anynpu_cast_args same{args->x, args->y};
  return anynpu_cast_check(&same, workspace_bytes);
}

int32_t run_softmax(const Softmax* args, void*, size_t) {
  const int64_t count = anynpu::element_count(args->x);
  if (count == 0) return ANYNPU_OK;
  const int64_t length = args->x.shape[args->x.ndim - 1], rows = count / length;
  const std::unique_ptr<float[]> x(new float[count]), y(new float[count]), chosen(new float[rows]);
  const std::unique_ptr<int32_t[]> places(new int32_t[rows]);
  const anynpu_tensor all = like(args->x, ANYNPU_FLOAT32, x.get()), results = like(args->x, ANYNPU_FLOAT32, y.get());
  if (const int32_t status = copy_view(args->x, all)) return status;
  anynpu_moe_gating_topk_softmax_args call = {};
  call.x = rows_of(all, length);
  call.softmax = rows_of(results, length);
  call.y = call.expert_idx = call.x;
  call.y.shape[1] = call.expert_idx.shape[1] = 1;
  call.y = like(call.y, ANYNPU_FLOAT32, chosen.get());
  call.expert_idx = like(call.expert_idx, ANYNPU_INT32, places.get());
  size_t bytes = 0;
  if (const int32_t status = anynpu_moe_gating_topk_softmax_check(&call, &bytes)) return status;
  const std::unique_ptr<char[]> memory(new char[bytes]);
  if (const int32_t status = anynpu_moe_gating_topk_softmax(&call, memory.get(), bytes)) return status;
  return copy_view(results, args->y);
}

int32_t check_choice(const Choice* args, size_t* workspace_bytes) {
  *workspace_bytes = 0;
  if (args->x.dtype == ANYNPU_INT64 || args->x.dtype == ANYNPU_UINT64) {
    return anynpu::fail(ANYNPU_BAD_DTYPE, "self in %s is not implemented", anynpu::dtype_name(args->x.dtype));
  }
  const int64_t length = args->x.shape[args->x.ndim - 1];
  if (args->count < 0 || args->count > length) {
    return anynpu::fail(ANYNPU_BAD_SHAPE, "k must be in [0, %lld], got %lld", wide(length), wide(args->count));
  }
  anynpu_tensor expected = args->x;
  expected.shape[expected.ndim - 1] = args->count;
  for (const anynpu_tensor* result : {&args->values, &args->indices}) {
    if (!anynpu::present(*result)) continue;
    const anynpu_cast_args same{expected, *result};
    if (const int32_t status = anynpu_cast_check(&same, workspace_bytes)) return status;
  }
  return ANYNPU_OK;
}

// NaN counts as the largest value, as in torch.
bool less(double a, double b) { return std::isnan(b) ? !std::isnan(a) : a < b; }

int32_t run_choice(const Choice* args, void*, size_t) {
  const int64_t count = anynpu::element_count(args->x), length = args->x.shape[args->x.ndim - 1], k = args->count;
  if (count == 0 || k == 0) return ANYNPU_OK;
  const int64_t rows = count / length;
  const std::unique_ptr<double[]> x(new double[count]), values(new double[rows * k]);
  const std::unique_ptr<int64_t[]> places(new int64_t[rows * k]);
  if (const int32_t status = copy_view(args->x, like(args->x, ANYNPU_FLOAT64, x.get()))) return status;
  std::vector<int64_t> order(length);
  for (int64_t row = 0; row < rows; ++row) {
    const double* from = x.get() + row * length;
    std::iota(order.begin(), order.end(), int64_t{0});
    std::partial_sort(order.begin(), order.begin() + k, order.end(), [&](int64_t a, int64_t b) {
      const bool before = args->largest ? less(from[b], from[a]) : less(from[a], from[b]);
      const bool after = args->largest ? less(from[a], from[b]) : less(from[b], from[a]);
      return before || (!after && a < b);
    });
    for (int64_t i = 0; i < k; ++i) {
      places[row * k + i] = order[i];
      values[row * k + i] = from[order[i]];
    }
  }
  if (const int32_t status = copy_view(like(args->indices, ANYNPU_INT64, places.get()), args->indices)) return status;
  if (!anynpu::present(args->values)) return ANYNPU_OK;
  return copy_view(like(args->indices, ANYNPU_FLOAT64, values.get()), args->values);
}

constexpr auto kSoftmax = anynpu::acl::make_operator<Softmax, check_softmax, run_softmax>("aclnnSoftmax");
constexpr auto kTopk = anynpu::acl::make_operator<Choice, check_choice, run_choice>("aclnnTopk");
constexpr auto kArgMax = anynpu::acl::make_operator<Choice, check_choice, run_choice>("aclnnArgMax");

}  // namespace

extern "C" aclnnStatus aclnnSoftmaxGetWorkspaceSize(const aclTensor* self, int64_t dim, aclTensor* out,
                                                    uint64_t* workspaceSize, aclOpExecutor** executor) {
  return anynpu::acl::first_stage<Softmax>(kSoftmax, workspaceSize, executor, [&](auto& stage) {
    stage.input("self", self, &Softmax::x);
    stage.output("out", out, &Softmax::y);
    stage.require(stage.args.x.ndim == stage.args.y.ndim, "out must have the %d axes of self, got %d",
                  stage.args.x.ndim, stage.args.y.ndim);
    const int64_t axis = stage.axis("dim", dim, stage.args.x);
    if (!stage.ok()) return;
    stage.args.x = moved(stage.args.x, axis);
    stage.args.y = moved(stage.args.y, axis);
  });
}

extern "C" aclnnStatus aclnnTopkGetWorkspaceSize(const aclTensor* self, int64_t k, int64_t dim, bool largest, bool,
                                                 aclTensor* valuesOut, aclTensor* indicesOut, uint64_t* workspaceSize,
                                                 aclOpExecutor** executor) {
  return anynpu::acl::first_stage<Choice>(kTopk, workspaceSize, executor, [&](auto& stage) {
    Choice& args = stage.args;
    stage.input("self", self, &Choice::x);
    stage.output("valuesOut", valuesOut, &Choice::values);
    stage.output("indicesOut", indicesOut, &Choice::indices);
    const int64_t axis = stage.axis("dim", dim, args.x);
    stage.require(args.x.ndim == args.values.ndim && args.x.ndim == args.indices.ndim,
                  "self, valuesOut and indicesOut must have as many axes, got %d, %d and %d", args.x.ndim,
                  args.values.ndim, args.indices.ndim);
    stage.require(args.indices.dtype == ANYNPU_INT64, "indicesOut must be int64, got %s",
                  anynpu::dtype_name(args.indices.dtype));
    stage.require(args.values.dtype == args.x.dtype, "valuesOut must be %s as self is, got %s",
                  anynpu::dtype_name(args.x.dtype), anynpu::dtype_name(args.values.dtype));
    if (!stage.ok()) return;
    for (anynpu_tensor* tensor : {&args.x, &args.values, &args.indices}) *tensor = moved(*tensor, axis);
    args.count = k;
    args.largest = largest;
  });
}

extern "C" aclnnStatus aclnnArgMaxGetWorkspaceSize(const aclTensor* self, const int64_t dim, const bool keepdim,
                                                   aclTensor* out, uint64_t* workspaceSize, aclOpExecutor** executor) {
  return anynpu::acl::first_stage<Choice>(kArgMax, workspaceSize, executor, [&](auto& stage) {
    anynpu_tensor &x = stage.args.x, &y = stage.args.indices;
    stage.input("self", self, &Choice::x);
    stage.output("out", out, &Choice::indices);
    const int64_t axis = stage.axis("dim", dim, x);
    stage.require(y.ndim == x.ndim - (keepdim ? 0 : 1), "out must have %d axes, got %d", x.ndim - (keepdim ? 0 : 1),
                  y.ndim);
    stage.require(y.dtype == ANYNPU_INT64 || y.dtype == ANYNPU_INT32, "out must be int64 or int32, got %s",
                  anynpu::dtype_name(y.dtype));
    if (!stage.ok()) return;
    x = moved(x, axis);
    if (keepdim) {
      y = moved(y, axis);
    } else {
      y.shape[y.ndim] = 1;
      y.strides[y.ndim++] = 1;
    }
    stage.args.count = 1;
    stage.args.largest = true;
  });
}

ANYNPU_SECOND_STAGE(aclnnSoftmax, kSoftmax)

ANYNPU_SECOND_STAGE(aclnnTopk, kTopk)

ANYNPU_SECOND_STAGE(aclnnArgMax, kArgMax)
