// SPDX-License-Identifier: Apache-2.0
// dynamic_quant and quant_matmul in one call: of few rows the second call would take as long as the arithmetic.
#include <algorithm>

#include "core/scratch.h"
#include "core/tensor.h"

namespace anynpu {
namespace {

constexpr const char* kOp = "dynamic_quant_matmul";

struct Stages {
  anynpu_dynamic_quant_args quantise;
  anynpu_quant_matmul_args multiply;
  int64_t rows, k;
};

anynpu_tensor contiguous(int32_t dtype, std::initializer_list<int64_t> shape, void* data) {
  anynpu_tensor tensor = {};
  tensor.data = data;
  tensor.dtype = dtype;
  tensor.format = ANYNPU_ND;
  tensor.ndim = static_cast<int32_t>(shape.size());
  std::copy(shape.begin(), shape.end(), tensor.shape);
  make_contiguous(tensor);
  return tensor;
}

int32_t check_axes(const anynpu_tensor& x, const anynpu_tensor& y) {
  ANYNPU_TRY(check_required(kOp, "x", x));
  ANYNPU_TRY(check_required(kOp, "y", y));
  if (x.ndim >= 2 && y.ndim == x.ndim && std::equal(x.shape, x.shape + x.ndim - 1, y.shape) && y.format == ANYNPU_ND &&
      is_contiguous(y)) {
    return ANYNPU_OK;
  }
  return fail(ANYNPU_BAD_SHAPE, "%s: x must be [..., M, K] and y [..., M, N], ND and contiguous, got %s and %s", kOp,
              shape_text(x), shape_text(y));
}

// The arguments of both operators. The codes, which lie in no tensor yet, have the axes of x for the first one, and are
// rows for the second one.
Stages stages_of(const anynpu_dynamic_quant_matmul_args& args) {
  Stages stages = {};
  auto& [quantise, multiply, rows, k] = stages;
  const int axes = args.x.ndim - 1;
  k = args.x.shape[axes];
  rows = 1;
  for (int axis = 0; axis < axes; ++axis) rows *= args.x.shape[axis];
  quantise.x = quantise.y = quantise.scale = args.x;
  quantise.y.dtype = ANYNPU_INT8;
  make_contiguous(quantise.y);
  quantise.scale.dtype = ANYNPU_FLOAT32;
  quantise.scale.ndim = axes;
  make_contiguous(quantise.scale);
  quantise.quant_mode = ANYNPU_PER_TOKEN;
  multiply.x1 = contiguous(ANYNPU_INT8, {rows, k}, nullptr);
  multiply.x2 = args.weight;
  multiply.scale = args.scale;
  multiply.pertoken_scale = contiguous(ANYNPU_FLOAT32, {rows}, nullptr);
  multiply.bias = args.bias;
  multiply.y = contiguous(args.y.dtype, {rows, args.y.shape[axes]}, args.y.data);
  multiply.group_size = args.group_size;
  return stages;
}

int32_t check(const Stages& stages) {
  size_t workspace_bytes = 0;
  ANYNPU_TRY(anynpu_dynamic_quant_check(&stages.quantise, &workspace_bytes));
  return anynpu_quant_matmul_check(&stages.multiply, &workspace_bytes);
}

int32_t run(Stages& stages) {
  const size_t scales = (stages.rows * sizeof(float) + kScratchAlignment - 1) / kScratchAlignment * kScratchAlignment;
  auto* memory = static_cast<uint8_t*>(scratch(ScratchSlot::codes, scales + stages.rows * stages.k));
  if (memory == nullptr && stages.rows > 0) return fail(ANYNPU_NO_MEMORY, "%s: no memory for the codes of x", kOp);
  stages.quantise.scale.data = stages.multiply.pertoken_scale.data = memory;
  stages.quantise.y.data = stages.multiply.x1.data = memory + scales;
  ANYNPU_TRY(anynpu_dynamic_quant(&stages.quantise, nullptr, 0));
  return anynpu_quant_matmul(&stages.multiply, nullptr, 0);
}

}  // namespace
}  // namespace anynpu

using anynpu::check_axes;
using anynpu::fail;
using anynpu::stages_of;

extern "C" int32_t anynpu_dynamic_quant_matmul_check(const anynpu_dynamic_quant_matmul_args* args,
                                                     size_t* workspace_bytes) {
  if (args == nullptr || workspace_bytes == nullptr) {
    return fail(ANYNPU_NULL_ARG, "dynamic_quant_matmul: null argument");
  }
  *workspace_bytes = 0;
  ANYNPU_TRY(check_axes(args->x, args->y));
  return anynpu::check(stages_of(*args));
}

extern "C" int32_t anynpu_dynamic_quant_matmul(const anynpu_dynamic_quant_matmul_args* args, void*, size_t) {
  if (args == nullptr) return fail(ANYNPU_NULL_ARG, "dynamic_quant_matmul: null argument");
  ANYNPU_TRY(check_axes(args->x, args->y));
  anynpu::Stages stages = stages_of(*args);
  ANYNPU_TRY(anynpu::check(stages));
  return anynpu::run(stages);
}
