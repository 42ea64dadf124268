// SPDX-License-Identifier: Apache-2.0
#include "ops/dequant_swiglu_quant/dequant_swiglu_quant.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <new>

#include "core/parallel.h"
#include "core/tensor.h"
#include "gemm/gemm.h"
#include "ops/dynamic_quant/dynamic_quant.h"

namespace anynpu {

ANYNPU_KERNELS(DequantSwigluQuantKernel, dequant_swiglu_quant)

namespace {

constexpr const char* kOp = "dequant_swiglu_quant";
constexpr int64_t kGrain = 1 << 15;  // outputs a thread; below it a second thread costs more than it gives
constexpr int64_t kTile = 256;       // outputs computed at once
static_assert(kTile % kSwigluPadding == 0);

enum Mode : int32_t { kStatic = 0, kDynamic = 1 };
enum Split : int32_t { kHalves = 0, kInterleavedClamped = 1, kHalvesClamped = 2 };

struct Shape {
  int64_t rows, width, outputs, groups;
};

int32_t check_x(const anynpu_tensor& x, Shape* shape) {
  ANYNPU_TRY(check_dtype(kOp, "x", x, {ANYNPU_INT32, ANYNPU_FLOAT32, ANYNPU_FLOAT16, ANYNPU_BFLOAT16}));
  if (x.ndim < 2) return fail(ANYNPU_BAD_SHAPE, "%s: x dim should larger than 1, got %d", kOp, x.ndim);
  ANYNPU_TRY(check_plain(kOp, "x", x));
  shape->width = x.shape[x.ndim - 1];
  if (shape->width % 2 != 0) {
    return fail(ANYNPU_BAD_SHAPE, "%s: x last dim should be even, got %lld", kOp, wide(shape->width));
  }
  shape->outputs = shape->width / 2;
  shape->rows = 1;
  for (int axis = 0; axis < x.ndim - 1; ++axis) shape->rows *= x.shape[axis];
  return ANYNPU_OK;
}

int32_t check_groups(const anynpu_dequant_swiglu_quant_args& args, Shape* shape) {
  const anynpu_tensor& groups = args.group_index;
  shape->groups = 1;
  if (!present(groups)) return ANYNPU_OK;
  ANYNPU_TRY(check_dtype(kOp, "group_index", groups, {ANYNPU_INT64}));
  ANYNPU_TRY(check_plain(kOp, "group_index", groups));
  if (groups.ndim != 1 || groups.shape[0] < 1) {
    return fail(ANYNPU_BAD_SHAPE, "%s: group_index must have shape (G,), got %s", kOp, shape_text(groups));
  }
  if (present(args.bias) || present(args.quant_offset)) {
    return fail(ANYNPU_BAD_SHAPE, "%s: bias and quant_offset must be absent with group_index", kOp);
  }
  shape->groups = groups.shape[0];
  return ANYNPU_OK;
}

// (G, length), and with one group (length,) too.
bool is_by_group(const anynpu_tensor& tensor, const Shape& shape, int64_t length) {
  if (tensor.ndim == 1) return shape.groups == 1 && tensor.shape[0] == length;
  return tensor.ndim == 2 && tensor.shape[0] == shape.groups && tensor.shape[1] == length;
}

int32_t check_dequantization(const anynpu_dequant_swiglu_quant_args& args, const Shape& shape) {
  const anynpu_tensor &weight = args.weight_scale, &activation = args.activation_scale, &bias = args.bias;
  ANYNPU_TRY(check_dtype(kOp, "weight_scale", weight, {ANYNPU_FLOAT32}));
  ANYNPU_TRY(check_dtype(kOp, "activation_scale", activation, {ANYNPU_FLOAT32}));
  ANYNPU_TRY(check_dtype(kOp, "bias", bias, {ANYNPU_INT32, ANYNPU_FLOAT32, ANYNPU_FLOAT16, ANYNPU_BFLOAT16}));
  if (args.x.dtype == ANYNPU_INT32 && !present(weight))
    return fail(ANYNPU_BAD_SHAPE, "%s: int32 x needs weight_scale", kOp);
  if (present(weight)) ANYNPU_TRY(check_plain(kOp, "weight_scale", weight));
  if (present(weight) && !is_by_group(weight, shape, shape.width)) {
    return fail(ANYNPU_BAD_SHAPE, "%s: weight_scale must have shape (G, 2 H) = (%lld, %lld), got %s", kOp,
                wide(shape.groups), wide(shape.width), shape_text(weight));
  }
  if (present(activation)) ANYNPU_TRY(check_plain(kOp, "activation_scale", activation));
  if (present(activation) && element_count(activation) != shape.rows) {
    return fail(ANYNPU_BAD_SHAPE, "%s: activation_scale must have a value for each of %lld rows, got %s", kOp,
                wide(shape.rows), shape_text(activation));
  }
  if (present(bias)) ANYNPU_TRY(check_plain(kOp, "bias", bias));
  if (present(bias) && !is_by_group(bias, shape, shape.width)) {
    return fail(ANYNPU_BAD_SHAPE, "%s: bias must have shape (2 H,) = (%lld,), got %s", kOp, wide(shape.width),
                shape_text(bias));
  }
  return ANYNPU_OK;
}

int32_t check_quant_parameter(const char* name, const anynpu_tensor& tensor, int32_t mode, const Shape& shape) {
  if (!present(tensor)) return ANYNPU_OK;
  ANYNPU_TRY(mode == kStatic ? check_dtype(kOp, name, tensor, {ANYNPU_FLOAT32})
                             : check_dtype(kOp, name, tensor, {ANYNPU_FLOAT32, ANYNPU_FLOAT16, ANYNPU_BFLOAT16}));
  ANYNPU_TRY(check_plain(kOp, name, tensor));
  const bool one_each = tensor.ndim == 1 && tensor.shape[0] == shape.groups;
  if (one_each || is_by_group(tensor, shape, shape.outputs)) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE, "%s: %s must have shape (G, H) = (%lld, %lld) or (G,), got %s", kOp, name,
              wide(shape.groups), wide(shape.outputs), shape_text(tensor));
}

int32_t check_attributes(const anynpu_dequant_swiglu_quant_args& args) {
  if (args.quant_mode != kStatic && args.quant_mode != kDynamic) {
    return fail(ANYNPU_BAD_SHAPE, "%s: quant_mode only support 0 or 1, but got %d", kOp, args.quant_mode);
  }
  if (args.swiglu_mode < kHalves || args.swiglu_mode > kHalvesClamped) {
    return fail(ANYNPU_BAD_SHAPE, "%s: swiglu_mode only support 0, 1 or 2, but got %d", kOp, args.swiglu_mode);
  }
  if (!(args.clamp_limit > 0) || !std::isfinite(args.clamp_limit)) {
    return fail(ANYNPU_BAD_SHAPE, "%s: clamp_limit should be positive finite, got %g", kOp, args.clamp_limit);
  }
  if (!std::isfinite(args.glu_alpha))
    return fail(ANYNPU_BAD_SHAPE, "%s: glu_alpha should be finite, got %g", kOp, args.glu_alpha);
  if (!std::isfinite(args.glu_bias))
    return fail(ANYNPU_BAD_SHAPE, "%s: glu_bias should be finite, got %g", kOp, args.glu_bias);
  if (args.quant_mode == kDynamic && present(args.quant_offset)) {
    return fail(ANYNPU_BAD_SHAPE, "%s: quant_offset must be absent in dynamic mode", kOp);
  }
  return ANYNPU_OK;
}

int32_t check_outputs(const anynpu_dequant_swiglu_quant_args& args, const Shape& shape) {
  const anynpu_tensor &x = args.x, &y = args.y, &scale = args.scale;
  ANYNPU_TRY(check_dtype(kOp, "y", y, {ANYNPU_INT8}));
  ANYNPU_TRY(check_dtype(kOp, "scale", scale, {ANYNPU_FLOAT32}));
  ANYNPU_TRY(check_plain(kOp, "y", y));
  ANYNPU_TRY(check_plain(kOp, "scale", scale));
  const int leading = x.ndim - 1;
  if (y.ndim != x.ndim || !std::equal(x.shape, x.shape + leading, y.shape) || y.shape[leading] != shape.outputs) {
    return fail(ANYNPU_BAD_SHAPE, "%s: y must have the shape of x with a last axis of %lld, got %s", kOp,
                wide(shape.outputs), shape_text(y));
  }
  if (scale.ndim != leading || !std::equal(x.shape, x.shape + leading, scale.shape)) {
    return fail(ANYNPU_BAD_SHAPE, "%s: scale must have the shape of x without its last axis, got %s", kOp,
                shape_text(scale));
  }
  return ANYNPU_OK;
}

int32_t check(const anynpu_dequant_swiglu_quant_args& args, Shape* shape) {
  ANYNPU_TRY(check_required(kOp, "x", args.x));
  ANYNPU_TRY(check_tensor(kOp, "weight_scale", args.weight_scale));
  ANYNPU_TRY(check_tensor(kOp, "activation_scale", args.activation_scale));
  ANYNPU_TRY(check_tensor(kOp, "bias", args.bias));
  ANYNPU_TRY(check_tensor(kOp, "quant_scale", args.quant_scale));
  ANYNPU_TRY(check_tensor(kOp, "quant_offset", args.quant_offset));
  ANYNPU_TRY(check_tensor(kOp, "group_index", args.group_index));
  ANYNPU_TRY(check_required(kOp, "y", args.y));
  ANYNPU_TRY(check_required(kOp, "scale", args.scale));
  ANYNPU_TRY(check_x(args.x, shape));
  ANYNPU_TRY(check_attributes(args));
  ANYNPU_TRY(check_groups(args, shape));
  ANYNPU_TRY(check_dequantization(args, *shape));
  ANYNPU_TRY(check_quant_parameter("quant_scale", args.quant_scale, args.quant_mode, *shape));
  ANYNPU_TRY(check_quant_parameter("quant_offset", args.quant_offset, args.quant_mode, *shape));
  return check_outputs(args, *shape);
}

class Activation {
 public:
  Activation(const anynpu_dequant_swiglu_quant_args& args, const Shape& shape)
      : args_(args),
        shape_(shape),
        kernel_(pick(kKernels)),
        quantizer_(dynamic_quant_kernel()),
        form_{args.swiglu_mode != kHalves, args.clamp_limit, args.glu_alpha, args.glu_bias} {}

  int32_t run() {
    ANYNPU_TRY(find_group_ends());
    const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, shape_.outputs));
    const int threads = thread_count(shape_.rows, grain);
    const int64_t stride = (shape_.outputs + kSwigluPadding - 1) / kSwigluPadding * kSwigluPadding;
    std::unique_ptr<float[]> values(new (std::nothrow) float[threads * stride]);
    if (!values) return fail(ANYNPU_NO_MEMORY, "%s: no memory for rows of %lld values", kOp, wide(shape_.outputs));
    parallel_for(shape_.rows, grain, [&](int64_t begin, int64_t end) {
      float* own = values.get() + (threads == 1 ? 0 : omp_get_thread_num() * stride);
      for (int64_t row = begin; row < end; ++row) one_row(row, own);
    });
    return ANYNPU_OK;
  }

 private:
  // The groups' rows follow each other; group_ends_ holds where each ends.
  int32_t find_group_ends() {
    group_ends_.reset(new (std::nothrow) int64_t[shape_.groups]);
    if (!group_ends_) return fail(ANYNPU_NO_MEMORY, "%s: no memory for %lld groups", kOp, wide(shape_.groups));
    group_ends_[0] = shape_.rows;
    if (!present(args_.group_index)) return ANYNPU_OK;
    const auto* counts = static_cast<const int64_t*>(args_.group_index.data);
    int64_t before = 0;
    for (int64_t i = 0; i < shape_.groups; before = group_ends_[i++]) {
      if (counts[i] < 0 || counts[i] > shape_.rows - before) {
        return fail(
            ANYNPU_BAD_VALUE,
            "%s: group_index must hold counts whose sum is at most the number of rows, %lld, got %lld at [%lld]", kOp,
            wide(shape_.rows), wide(counts[i]), wide(i));
      }
      group_ends_[i] = before + counts[i];
    }
    return ANYNPU_OK;
  }

  void one_row(int64_t row, float* values) const {
    auto* codes = static_cast<int8_t*>(args_.y.data) + row * shape_.outputs;
    float& scale = static_cast<float*>(args_.scale.data)[row];
    scale = 0.0f;
    const int64_t* ends = group_ends_.get();
    const int64_t group = std::upper_bound(ends, ends + shape_.groups, row) - ends;
    if (group == shape_.groups) {
      std::fill_n(codes, shape_.outputs, int8_t{0});
      return;
    }
    for (int64_t at = 0; at < shape_.outputs; at += kTile) {
      activate(row, group, at, std::min(kTile, shape_.outputs - at), values + at);
    }
    if (args_.quant_mode == kStatic) {
      quantize_statically(group, values, codes);
      return;
    }
    scale = quantizer_.largest(values, shape_.outputs) / 127.0f;
    quantizer_.quantize(values, &scale, false, shape_.outputs, codes);
  }

  // Of the columns that load() takes: memory works on the next tile during the arithmetic of one.
  void fetch(int64_t row, int64_t at, int64_t count) const {
    const int64_t bytes = dtype_bits(args_.x.dtype) / 8;
    const auto* x = static_cast<const uint8_t*>(args_.x.data) + (row * shape_.width + at) * bytes;
    for (int64_t i = 0; i < count * bytes; i += 64) __builtin_prefetch(x + i, 0, 2);
  }

  void fetch_next(int64_t row, int64_t at) const {
    at += kTile;
    if (at >= shape_.outputs) at = 0, ++row;
    if (row == shape_.rows) return;
    const int64_t count = std::min(kTile, shape_.outputs - at);
    if (args_.swiglu_mode == kInterleavedClamped) return fetch(row, 2 * at, 2 * count);
    fetch(row, at, count);
    fetch(row, shape_.outputs + at, count);
  }

  // Outputs [at, at + count) of a row, before quantisation; writes whole vectors.
  void activate(int64_t row, int64_t group, int64_t at, int64_t count, float* to) const {
    float gate[kTile], linear[kTile];
    fetch_next(row, at);
    const int64_t padded = (count + kSwigluPadding - 1) / kSwigluPadding * kSwigluPadding;
    std::fill(gate + count, gate + padded, 0.0f);
    std::fill(linear + count, linear + padded, 0.0f);
    if (args_.swiglu_mode == kInterleavedClamped) {
      float pairs[2 * kTile];
      load(row, group, 2 * at, 2 * count, pairs);
      for (int64_t i = 0; i < count; ++i) {
        gate[i] = pairs[2 * i];
        linear[i] = pairs[2 * i + 1];
      }
    } else {
      const int64_t first = args_.activate_left ? 0 : shape_.outputs;
      load(row, group, first + at, count, gate);
      load(row, group, shape_.outputs - first + at, count, linear);
    }
    kernel_.activate(gate, linear, form_, padded, to);
    if (args_.quant_mode != kDynamic || !present(args_.quant_scale)) return;
    float factors[kTile];
    load_parameter(args_.quant_scale, group, shape_.outputs, at, count, factors);
    quantizer_.multiply(to, factors, count);
  }

  // Columns [at, at + count) of a row of x, dequantised; at most 2 * kTile.
  void load(int64_t row, int64_t group, int64_t at, int64_t count, float* to) const {
    const auto* x =
        static_cast<const uint8_t*>(args_.x.data) + (row * shape_.width + at) * dtype_bits(args_.x.dtype) / 8;
    if (args_.x.dtype != ANYNPU_INT32) {
      gemm_kernel().load_floats(x, args_.x.dtype, 1, count, to);
      return;
    }
    const auto* activation_scale = static_cast<const float*>(args_.activation_scale.data);
    const auto* weight_scale = static_cast<const float*>(args_.weight_scale.data) + group * shape_.width + at;
    const int32_t* int_bias = nullptr;
    float float_bias[2 * kTile];
    const bool biased = present(args_.bias), integer = args_.bias.dtype == ANYNPU_INT32;
    if (biased && integer) int_bias = static_cast<const int32_t*>(args_.bias.data) + at;
    if (biased && !integer) load_parameter(args_.bias, 0, shape_.width, at, count, float_bias);
    kernel_.dequantize(reinterpret_cast<const int32_t*>(x), int_bias, weight_scale,
                       present(args_.activation_scale) ? activation_scale[row] : 1.0f,
                       biased && !integer ? float_bias : nullptr, count, to);
  }

  // Columns [at, at + count) of a group's row of `length`; a parameter with one value for each group is spread.
  void load_parameter(const anynpu_tensor& parameter, int64_t group, int64_t length, int64_t at, int64_t count,
                      float* to) const {
    const bool spread = element_count(parameter) != shape_.groups * length;
    const auto* data = static_cast<const uint8_t*>(parameter.data);
    const int64_t index = spread ? group : group * length + at;
    gemm_kernel().load_floats(data + index * dtype_bits(parameter.dtype) / 8, parameter.dtype, 1, spread ? 1 : count,
                              to);
    if (spread) std::fill(to + 1, to + count, to[0]);
  }

  void quantize_statically(int64_t group, const float* values, int8_t* codes) const {
    float scale[kTile], offset[kTile];
    std::fill_n(scale, kTile, 1.0f);
    std::fill_n(offset, kTile, 0.0f);
    for (int64_t at = 0; at < shape_.outputs; at += kTile) {
      const int64_t count = std::min(kTile, shape_.outputs - at);
      if (present(args_.quant_scale)) load_parameter(args_.quant_scale, group, shape_.outputs, at, count, scale);
      if (present(args_.quant_offset)) load_parameter(args_.quant_offset, group, shape_.outputs, at, count, offset);
      kernel_.quantize(values + at, scale, offset, count, codes + at);
    }
  }

  const anynpu_dequant_swiglu_quant_args& args_;
  const Shape& shape_;
  const DequantSwigluQuantKernel& kernel_;
  const DynamicQuantKernel& quantizer_;
  const SwigluForm form_;
  std::unique_ptr<int64_t[]> group_ends_;
};

}  // namespace
}  // namespace anynpu

using anynpu::check_data;
using anynpu::fail;

extern "C" int32_t anynpu_dequant_swiglu_quant_check(const anynpu_dequant_swiglu_quant_args* args,
                                                     size_t* workspace_bytes) {
  if (args == nullptr || workspace_bytes == nullptr)
    return fail(ANYNPU_NULL_ARG, "dequant_swiglu_quant: null argument");
  *workspace_bytes = 0;
  anynpu::Shape shape;
  return anynpu::check(*args, &shape);
}

extern "C" int32_t anynpu_dequant_swiglu_quant(const anynpu_dequant_swiglu_quant_args* args, void*, size_t) {
  if (args == nullptr) return fail(ANYNPU_NULL_ARG, "dequant_swiglu_quant: null argument");
  anynpu::Shape shape;
  ANYNPU_TRY(anynpu::check(*args, &shape));
  ANYNPU_TRY(check_data("dequant_swiglu_quant", "x", args->x));
  ANYNPU_TRY(check_data("dequant_swiglu_quant", "weight_scale", args->weight_scale));
  ANYNPU_TRY(check_data("dequant_swiglu_quant", "activation_scale", args->activation_scale));
  ANYNPU_TRY(check_data("dequant_swiglu_quant", "bias", args->bias));
  ANYNPU_TRY(check_data("dequant_swiglu_quant", "quant_scale", args->quant_scale));
  ANYNPU_TRY(check_data("dequant_swiglu_quant", "quant_offset", args->quant_offset));
  ANYNPU_TRY(check_data("dequant_swiglu_quant", "group_index", args->group_index));
  ANYNPU_TRY(check_data("dequant_swiglu_quant", "y", args->y));
  ANYNPU_TRY(check_data("dequant_swiglu_quant", "scale", args->scale));
  return anynpu::Activation(*args, shape).run();
}
