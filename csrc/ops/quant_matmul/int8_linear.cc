// SPDX-License-Identifier: Apache-2.0
// The operators of a linear layer of int8 activations in one call: of few rows a second call would take as long as the
// arithmetic.
#include <algorithm>

#include "core/integer.h"
#include "core/scratch.h"
#include "core/tensor.h"

namespace anynpu {
namespace {

constexpr const char* kOp = "int8_linear";

struct Linear {
  const anynpu_int8_linear_args& args;
  int64_t rows, k;
  // What the first operator makes for the second one, [..., M, K] and [..., M]. The scales are those of dynamic_quant,
  // or else one input_scale for all rows.
  anynpu_tensor codes, row_scale;
};

bool is_static(const Linear& linear) { return present(linear.args.input_scale); }

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

// What neither operator sees.
int32_t check_options(const anynpu_int8_linear_args& args) {
  const anynpu_tensor& scale = args.input_scale;
  ANYNPU_TRY(check_tensor(kOp, "input_scale", scale));
  if (present(scale) && (scale.ndim != 1 || scale.shape[0] != 1)) {
    return fail(ANYNPU_BAD_SHAPE, "%s: input_scale must have shape (1,), got %s", kOp, shape_text(scale));
  }
  if (present(args.input_offset) && !present(scale)) {
    return fail(ANYNPU_BAD_SHAPE, "%s: input_offset needs input_scale", kOp);
  }
  if (present(args.index) && args.group_size != 0) {
    return fail(ANYNPU_BAD_SHAPE, "%s: group_size must be 0 with index, got %lld", kOp, wide(args.group_size));
  }
  return ANYNPU_OK;
}

Linear linear_of(const anynpu_int8_linear_args& args) {
  Linear linear = {args, 1, 0, args.x, args.x};
  const int axes = args.x.ndim - 1;
  linear.k = args.x.shape[axes];
  for (int axis = 0; axis < axes; ++axis) linear.rows *= args.x.shape[axis];
  linear.codes.dtype = ANYNPU_INT8;
  make_contiguous(linear.codes);
  linear.row_scale.dtype = ANYNPU_FLOAT32;
  linear.row_scale.ndim = axes;
  make_contiguous(linear.row_scale);
  return linear;
}

template <typename Args>
using Check = int32_t (*)(const Args*, size_t*);
template <typename Args>
using Run = int32_t (*)(const Args*, void*, size_t);

enum class Step : int8_t { check, run };

template <typename Args>
int32_t take(Step step, Check<Args> check, Run<Args> run, const Args& args) {
  size_t workspace_bytes = 0;
  return step == Step::check ? check(&args, &workspace_bytes) : run(&args, nullptr, 0);
}

int32_t quantise(Step step, const Linear& linear) {
  if (is_static(linear)) {
    anynpu_quantize_args own = {};
    own.x = linear.args.x;
    own.scales = linear.args.input_scale;
    own.zero_points = linear.args.input_offset;
    own.y = linear.codes;
    own.axis = -1;
    own.div_mode = 1;
    return take<anynpu_quantize_args>(step, anynpu_quantize_check, anynpu_quantize, own);
  }
  anynpu_dynamic_quant_args own = {};
  own.x = linear.args.x;
  own.y = linear.codes;
  own.scale = linear.row_scale;
  own.quant_mode = ANYNPU_PER_TOKEN;
  return take<anynpu_dynamic_quant_args>(step, anynpu_dynamic_quant_check, anynpu_dynamic_quant, own);
}

// One input_scale stands for all rows; beside an input_offset it is in the scale already.
anynpu_tensor pertoken_scale(const Linear& linear) {
  if (!is_static(linear)) return contiguous(ANYNPU_FLOAT32, {linear.rows}, linear.row_scale.data);
  if (present(linear.args.input_offset)) return {};
  anynpu_tensor same = linear.args.input_scale;
  same.shape[0] = linear.rows;
  same.strides[0] = 0;
  return same;
}

int32_t multiply(Step step, const Linear& linear) {
  const anynpu_int8_linear_args& args = linear.args;
  const anynpu_tensor x = contiguous(ANYNPU_INT8, {linear.rows, linear.k}, linear.codes.data);
  const anynpu_tensor y = contiguous(args.y.dtype, {linear.rows, args.y.shape[args.y.ndim - 1]}, args.y.data);
  if (present(args.index)) {
    anynpu_compressed_matmul_args own = {};
    own.x = x;
    own.stream = args.weight;
    own.index = args.index;
    own.bias = args.bias;
    own.scale = args.scale;
    own.pertoken_scale = pertoken_scale(linear);
    own.y = y;
    own.y_is_scratch = args.y_is_scratch;
    return take<anynpu_compressed_matmul_args>(step, anynpu_compressed_matmul_check, anynpu_compressed_matmul, own);
  }
  anynpu_quant_matmul_args own = {};
  own.x1 = x;
  own.x2 = args.weight;
  own.scale = args.scale;
  own.pertoken_scale = pertoken_scale(linear);
  own.bias = args.bias;
  own.y = y;
  own.group_size = args.group_size;
  return take<anynpu_quant_matmul_args>(step, anynpu_quant_matmul_check, anynpu_quant_matmul, own);
}

int32_t run(Linear& linear) {
  const size_t scales = round_up(linear.rows * sizeof(float), kScratchAlignment);
  auto* memory = static_cast<uint8_t*>(scratch(ScratchSlot::codes, scales + linear.rows * linear.k));
  if (memory == nullptr && linear.rows > 0) return fail(ANYNPU_NO_MEMORY, "%s: no memory for the codes of x", kOp);
  linear.row_scale.data = memory;
  linear.codes.data = memory + scales;
  ANYNPU_TRY(quantise(Step::run, linear));
  return multiply(Step::run, linear);
}

}  // namespace
}  // namespace anynpu

using anynpu::check_axes;
using anynpu::check_options;
using anynpu::fail;
using anynpu::Linear;
using anynpu::linear_of;
using anynpu::Step;

extern "C" int32_t anynpu_int8_linear_check(const anynpu_int8_linear_args* args, size_t* workspace_bytes) {
  if (args == nullptr || workspace_bytes == nullptr) return fail(ANYNPU_NULL_ARG, "int8_linear: null argument");
  *workspace_bytes = 0;
  ANYNPU_TRY(check_axes(args->x, args->y));
  ANYNPU_TRY(check_options(*args));
  const Linear linear = linear_of(*args);
  ANYNPU_TRY(quantise(Step::check, linear));
  return multiply(Step::check, linear);
}

extern "C" int32_t anynpu_int8_linear(const anynpu_int8_linear_args* args, void*, size_t) {
  size_t workspace_bytes = 0;
  ANYNPU_TRY(anynpu_int8_linear_check(args, &workspace_bytes));
  Linear linear = linear_of(*args);
  return anynpu::run(linear);
}
