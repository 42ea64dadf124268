// SPDX-License-Identifier: Apache-2.0
#include "ops/grouped_matmul/aclnn_product.h"

#include <memory>
#include <numeric>

#include "acl/executor/executor.h"
#include "core/status.h"
#include "core/tensor.h"

namespace anynpu::grouped {
namespace {

// The same tensor of another dtype, in memory of its own.
anynpu_tensor like(anynpu_tensor tensor, int32_t dtype, void* data) {
  tensor.dtype = dtype;
  tensor.data = data;
  make_contiguous(tensor);
  return tensor;
}

anynpu_tensor vector_of(int32_t dtype, int64_t count, void* data) {
  return {data, dtype, ANYNPU_ND, 1, 0, {count}, {1}};
}

// One of a stack of one.
anynpu_tensor stacked(anynpu_tensor tensor) {
  if (!present(tensor)) return tensor;
  std::copy_backward(tensor.shape, tensor.shape + tensor.ndim, tensor.shape + tensor.ndim + 1);
  std::copy_backward(tensor.strides, tensor.strides + tensor.ndim, tensor.strides + tensor.ndim + 1);
  tensor.shape[0] = 1;
  tensor.strides[0] = 0;
  ++tensor.ndim;
  return tensor;
}

// The rows of all leading axes as those of one.
anynpu_tensor matrix_of(anynpu_tensor tensor) {
  if (tensor.ndim == 2) return tensor;
  const int64_t columns = tensor.shape[tensor.ndim - 1];
  int64_t rows = 1;
  for (int axis = 0; axis + 1 < tensor.ndim; ++axis) rows *= tensor.shape[axis];
  tensor.ndim = 2;
  tensor.shape[0] = rows;
  tensor.shape[1] = columns;
  make_contiguous(tensor);
  return tensor;
}

// (M,) of (M, 1).
anynpu_tensor row_values(anynpu_tensor tensor) {
  if (present(tensor)) tensor.ndim = 1;
  return tensor;
}

template <typename Args>
int32_t call(int32_t (*check)(const Args*, size_t*), int32_t (*run)(const Args*, void*, size_t), const Args& args,
             bool running) {
  size_t bytes = 0;
  return running ? run(&args, nullptr, 0) : check(&args, &bytes);
}

int32_t multiply_floats(const Product& product, bool running) {
  const anynpu_tensor &x = product.x, &weight = product.weight, &bias = product.bias, &y = product.y;
  const int64_t k = x.shape[x.ndim - 1];
  if (weight.shape[0] != k) {
    return fail(ANYNPU_BAD_SHAPE, "K of x and weight must be equal, got %lld and %lld", wide(k), wide(weight.shape[0]));
  }
  const auto matmul = [&](const anynpu_tensor& out) {
    return call(anynpu_float_matmul_check, anynpu_float_matmul, anynpu_float_matmul_args{x, weight, out}, running);
  };
  if (!present(bias)) return matmul(y);
  if (!has_shape(bias, {weight.shape[1]})) {
    return fail(ANYNPU_BAD_SHAPE, "bias must have shape (N,) = (%lld,), got %s", wide(weight.shape[1]),
                shape_text(bias));
  }
  const std::unique_ptr<float[]> memory(running ? new float[element_count(y)] : nullptr);
  const anynpu_tensor sums = like(y, ANYNPU_FLOAT32, memory.get());
  ANYNPU_TRY(matmul(sums));
  return call(anynpu_float_elementwise_check, anynpu_float_elementwise,
              anynpu_float_elementwise_args{sums, bias, y, ANYNPU_FLOAT_ADD, 1.0f}, running);
}

int32_t multiply_antiquant(const Product& product, bool running) {
  anynpu_weight_quant_matmul_args args = {};
  args.x = product.x;
  args.weight = product.weight;
  args.scale = product.antiquant_scale;
  args.offset = product.antiquant_offset;
  args.bias = product.bias;
  args.y = product.y;
  const int64_t groups = args.scale.ndim == 2 ? args.scale.shape[0] : 1, k = args.x.shape[args.x.ndim - 1];
  if (groups < 1 || k % groups != 0) {
    return fail(ANYNPU_BAD_SHAPE, "antiquantScaleOptional must have shape (G, N) with G a divisor of K = %lld, got %s",
                wide(k), shape_text(args.scale));
  }
  args.group_size = groups == 1 ? 0 : k / groups;
  return call(anynpu_weight_quant_matmul_check, anynpu_weight_quant_matmul, args, running);
}

int32_t multiply_int8(const Product& product, bool running) {
  float one = 1;
  anynpu_quant_matmul_args args = {};
  args.x1 = product.x;
  args.x2 = product.weight;
  args.scale = present(product.scale) ? product.scale : vector_of(ANYNPU_FLOAT32, 1, &one);
  args.pertoken_scale = row_values(product.pertoken_scale);
  args.bias = product.bias;
  args.y = product.y;
  std::unique_ptr<float[]> scales;
  if (args.scale.dtype == ANYNPU_BFLOAT16) {  // which the kernel takes for bfloat16 results alone
    if (running) scales.reset(new float[element_count(args.scale)]);
    args.scale = like(args.scale, ANYNPU_FLOAT32, scales.get());
    if (running) ANYNPU_TRY(acl::copy_view(product.scale, args.scale));
  }
  return call(anynpu_quant_matmul_check, anynpu_quant_matmul, args, running);
}

int32_t multiply_int4(const Product& product, bool running) {
  for (const anynpu_tensor* tensor : {&product.x, &product.y}) {
    if (tensor->ndim == 2 || is_contiguous(*tensor)) continue;
    return fail(ANYNPU_BAD_SHAPE, "%s of more than 2 axes must be contiguous", tensor == &product.x ? "x" : "out");
  }
  Product all = product;
  all.x = matrix_of(product.x);
  all.y = matrix_of(product.y);
  all.weight = stacked(product.weight);
  all.scale = stacked(product.scale);
  all.bias = stacked(product.bias);
  size_t bytes = 0;
  return running ? run_combined(all, &all.x.shape[0], nullptr, 0) : check_combined(all, &bytes);
}

// The call of the kernel; results that are not sums go to `y`, row by row.
anynpu_grouped_matmul_combine_args combined(const Product& product, const int64_t* counts, float* y, int64_t* rows) {
  anynpu_grouped_matmul_combine_args made = {};
  made.x = product.x;
  made.weight = product.weight;
  made.scale = product.scale;
  made.group_list = vector_of(ANYNPU_INT64, product.weight.shape[0], const_cast<int64_t*>(counts));
  made.bias = product.bias;
  made.pertoken_scale = row_values(product.pertoken_scale);
  made.y = product.y;
  made.group_list_type = 1;
  if (product.y.dtype == ANYNPU_INT32) return made;
  made.y = like(product.y, ANYNPU_FLOAT32, y);
  made.row_index = vector_of(ANYNPU_INT64, product.y.shape[0], rows);
  return made;
}

}  // namespace

int32_t check_combined(const Product& product, size_t* workspace_bytes) {
  const auto args = combined(product, nullptr, nullptr, nullptr);
  return anynpu_grouped_matmul_combine_check(&args, workspace_bytes);
}

int32_t run_combined(const Product& product, const int64_t* counts, void* workspace, size_t workspace_bytes) {
  std::unique_ptr<float[]> y;
  std::unique_ptr<int64_t[]> rows;
  if (product.y.dtype != ANYNPU_INT32) {
    y.reset(new float[element_count(product.y)]);
    rows.reset(new int64_t[product.y.shape[0]]);
    std::iota(rows.get(), rows.get() + product.y.shape[0], int64_t{0});
  }
  const auto args = combined(product, counts, y.get(), rows.get());
  ANYNPU_TRY(anynpu_grouped_matmul_combine(&args, workspace, workspace_bytes));
  return y ? acl::copy_view(args.y, product.y) : ANYNPU_OK;
}

int32_t multiply(Mode mode, const Product& product, bool running) {
  if (running && element_count(product.y) == 0) return ANYNPU_OK;
  switch (mode) {
    case Mode::floats: return multiply_floats(product, running);
    case Mode::antiquant: return multiply_antiquant(product, running);
    case Mode::int8: return multiply_int8(product, running);
    default: return multiply_int4(product, running);
  }
}

}  // namespace anynpu::grouped
