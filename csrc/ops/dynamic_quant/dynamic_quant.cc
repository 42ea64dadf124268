// SPDX-License-Identifier: Apache-2.0
#include "ops/dynamic_quant/dynamic_quant.h"

#include <algorithm>
#include <memory>
#include <new>

#include "core/parallel.h"
#include "core/strided.h"
#include "gemm/gemm.h"

namespace anynpu {

ANYNPU_KERNELS(DynamicQuantKernel, dynamic_quant)

namespace {

constexpr const char* kOp = "dynamic_quant";
constexpr int64_t kGrain = 1 << 14;  // values a thread; below it a second thread costs more than it gives
constexpr int64_t kTile = 1024;      // values converted at once

int32_t check_x(const anynpu_tensor& x) {
  ANYNPU_TRY(check_dtype(kOp, "x", x, {ANYNPU_FLOAT16, ANYNPU_BFLOAT16, ANYNPU_FLOAT32}));
  if (x.ndim < 2) return fail(ANYNPU_BAD_SHAPE, "%s: Input shape dim should be greater than 1, got %d", kOp, x.ndim);
  if (x.format != ANYNPU_ND) return fail(ANYNPU_BAD_SHAPE, "%s: x must be ND", kOp);
  return check_strides(kOp, "x", x, Access::read);
}

struct Shape {
  int64_t batches, m, k;  // x as [batches][m][k]
  int64_t rows() const { return batches * m; }
};

Shape shape_of(const anynpu_tensor& x) {
  Shape shape = {1, x.shape[x.ndim - 2], x.shape[x.ndim - 1]};
  for (int axis = 0; axis < x.ndim - 2; ++axis) shape.batches *= x.shape[axis];
  return shape;
}

int32_t check_smooth(const anynpu_dynamic_quant_args& args, const Shape& shape) {
  const anynpu_tensor &smooth = args.smooth_scales, &groups = args.group_index;
  if (present(groups)) {
    if (!present(smooth)) return fail(ANYNPU_BAD_SHAPE, "%s: group_index needs smooth_scales", kOp);
    ANYNPU_TRY(check_dtype(kOp, "group_index", groups, {ANYNPU_INT32}));
    if (groups.ndim != 1 || groups.format != ANYNPU_ND || !is_contiguous(groups) || groups.shape[0] < 1 ||
        args.quant_mode == ANYNPU_PER_CHANNEL) {
      return fail(ANYNPU_BAD_SHAPE, "%s: group_index must have shape (G,), not per channel, got %s", kOp,
                  shape_text(groups));
    }
  }
  if (!present(smooth)) return ANYNPU_OK;
  if (smooth.dtype != args.x.dtype) {
    return fail(ANYNPU_BAD_DTYPE, "%s: smooth_scales must be %s as x is, got %s", kOp, dtype_name(args.x.dtype),
                dtype_name(smooth.dtype));
  }
  const int64_t length = args.quant_mode == ANYNPU_PER_CHANNEL ? shape.m : shape.k;
  const bool fits = present(groups)
                        ? smooth.ndim == 2 && smooth.shape[0] == groups.shape[0] && smooth.shape[1] == length
                        : smooth.ndim == 1 && smooth.shape[0] == length;
  if (!fits || smooth.format != ANYNPU_ND) {
    return fail(ANYNPU_BAD_SHAPE, "%s: smooth_scales must be ND of shape %s%lld), got %s", kOp,
                present(groups) ? "(G, " : "(", wide(length), shape_text(smooth));
  }
  return ANYNPU_OK;
}

int32_t check_outputs(const anynpu_dynamic_quant_args& args) {
  const anynpu_tensor &x = args.x, &y = args.y, &scale = args.scale;
  if (y.dtype != ANYNPU_INT8 && y.dtype != ANYNPU_INT4 && y.dtype != ANYNPU_INT32) {
    return fail(ANYNPU_BAD_DTYPE, "%s: y must be int8, int4 or int32 (eight int4), got %s", kOp, dtype_name(y.dtype));
  }
  anynpu_tensor expected = x;
  int64_t& last = expected.shape[x.ndim - 1];
  if (y.dtype != ANYNPU_INT8) {
    if (last % 8 != 0) {
      return fail(ANYNPU_BAD_SHAPE, "%s: Input shape last dim must be divded by 8 when int4 quantization, got %lld",
                  kOp, wide(last));
    }
    if (y.dtype == ANYNPU_INT32) last /= 8;
  }
  ANYNPU_TRY(check_shape(kOp, "y", y, expected));
  ANYNPU_TRY(check_plain(kOp, "y", y));
  ANYNPU_TRY(check_dtype(kOp, "scale", scale, {ANYNPU_FLOAT32}));
  anynpu_tensor of_scale = x;
  of_scale.ndim = args.quant_mode == ANYNPU_PER_TENSOR ? 1 : x.ndim - 1;
  if (args.quant_mode == ANYNPU_PER_TENSOR) of_scale.shape[0] = 1;
  if (args.quant_mode == ANYNPU_PER_CHANNEL) of_scale.shape[x.ndim - 2] = x.shape[x.ndim - 1];
  ANYNPU_TRY(check_shape(kOp, "scale", scale, of_scale));
  return check_plain(kOp, "scale", scale);
}

int32_t check(const anynpu_dynamic_quant_args& args) {
  ANYNPU_TRY(check_required(kOp, "x", args.x));
  ANYNPU_TRY(check_tensor(kOp, "smooth_scales", args.smooth_scales));
  ANYNPU_TRY(check_tensor(kOp, "group_index", args.group_index));
  ANYNPU_TRY(check_required(kOp, "y", args.y));
  ANYNPU_TRY(check_required(kOp, "scale", args.scale));
  if (args.quant_mode < ANYNPU_PER_TOKEN || args.quant_mode > ANYNPU_PER_TENSOR) {
    return fail(ANYNPU_BAD_SHAPE, "%s: quant_mode must be 0, 1 or 2, got %d", kOp, args.quant_mode);
  }
  ANYNPU_TRY(check_x(args.x));
  ANYNPU_TRY(check_smooth(args, shape_of(args.x)));
  return check_outputs(args);
}

int32_t check_groups(const anynpu_dynamic_quant_args& args, const Shape& shape) {
  if (!present(args.group_index)) return ANYNPU_OK;
  const auto* ends = static_cast<const int32_t*>(args.group_index.data);
  int64_t before = 0;
  for (int64_t i = 0; i < args.group_index.shape[0]; before = ends[i++]) {
    if (ends[i] >= before && ends[i] <= shape.rows()) continue;
    return fail(ANYNPU_BAD_VALUE, "%s: group_index must not decrease and stay within [0, %lld], got %d at %lld", kOp,
                wide(shape.rows()), ends[i], wide(i));
  }
  if (before == shape.rows()) return ANYNPU_OK;
  return fail(ANYNPU_BAD_VALUE, "%s: the last value of group_index must be the number of rows, %lld, got %lld", kOp,
              wide(shape.rows()), wide(before));
}

class Quantizer {
 public:
  explicit Quantizer(const anynpu_dynamic_quant_args& args)
      : args_(args),
        shape_(shape_of(args.x)),
        kernel_(dynamic_quant_kernel()),
        limit_(args.y.dtype == ANYNPU_INT8 ? 127.0f : 7.0f) {}

  int32_t run() {
    ANYNPU_TRY(check_groups(args_, shape_));
    if (args_.quant_mode == ANYNPU_PER_CHANNEL) {
      per_channel();
      return ANYNPU_OK;
    }
    std::unique_ptr<float[]> largest;
    if (args_.quant_mode == ANYNPU_PER_TENSOR) {
      largest.reset(new (std::nothrow) float[shape_.rows()]);
      if (!largest) return fail(ANYNPU_NO_MEMORY, "%s: no memory for the largest values", kOp);
    }
    return by_rows(largest.get());
  }

 private:
  // Values [at, at + count) of row `row`, smoothed.
  void load(int64_t row, int64_t at, int64_t count, float* to) const {
    const anynpu_tensor& x = args_.x;
    const int64_t bytes = dtype_bits(x.dtype) / 8;
    int64_t elements = at * x.strides[x.ndim - 1];
    for (int64_t axis = x.ndim - 2, rest = row; axis >= 0; rest /= x.shape[axis--])
      elements += rest % x.shape[axis] * x.strides[axis];
    gemm_kernel().load_floats(static_cast<const uint8_t*>(x.data) + elements * bytes, x.dtype, x.strides[x.ndim - 1],
                              count, to);
    if (!present(args_.smooth_scales)) return;
    const anynpu_tensor& smooth = args_.smooth_scales;
    const auto* scales = static_cast<const uint8_t*>(smooth.data);
    const int64_t step = smooth.strides[smooth.ndim - 1];
    float factors[kTile];
    if (args_.quant_mode == ANYNPU_PER_CHANNEL) {
      gemm_kernel().load_floats(scales + row % shape_.m * step * bytes, x.dtype, 1, 1, factors);
      std::fill(factors + 1, factors + count, factors[0]);
    } else {
      const int64_t group = present(args_.group_index) ? group_of(row) * smooth.strides[0] : 0;
      gemm_kernel().load_floats(scales + (group + at * step) * bytes, x.dtype, step, count, factors);
    }
    kernel_.multiply(to, factors, count);
  }

  int64_t group_of(int64_t row) const {
    const auto* ends = static_cast<const int32_t*>(args_.group_index.data);
    return std::upper_bound(ends, ends + args_.group_index.shape[0], row) - ends;
  }

  // One scale, or with `by_column` one for each value.
  void quantize(int64_t row, int64_t at, int64_t count, const float* values, const float* scale, bool by_column) const {
    auto* y = static_cast<uint8_t*>(args_.y.data);
    const int64_t first = row * shape_.k + at;
    if (args_.y.dtype == ANYNPU_INT8) {
      return kernel_.quantize(values, scale, by_column, count, reinterpret_cast<int8_t*>(y) + first);
    }
    int8_t codes[kTile];
    kernel_.quantize(values, scale, by_column, count, codes);
    for (int64_t i = 0; i < count; i += 2) {
      y[(first + i) / 2] = static_cast<uint8_t>((codes[i] & 15) | static_cast<uint8_t>(codes[i + 1]) << 4);
    }
  }

  float row_largest(int64_t row) const {
    float values[kTile], most = 0.0f;
    for (int64_t at = 0; at < shape_.k; at += kTile) {
      const int64_t count = std::min(kTile, shape_.k - at);
      load(row, at, count, values);
      most = std::max(most, kernel_.largest(values, count));
    }
    return most;
  }

  void quantize_row(int64_t row, float scale) const {
    float values[kTile];
    for (int64_t at = 0; at < shape_.k; at += kTile) {
      const int64_t count = std::min(kTile, shape_.k - at);
      load(row, at, count, values);
      quantize(row, at, count, values, &scale, false);
    }
  }

  // Calls fn(row) for every row.
  template <typename Function>
  void for_rows(const Function& fn) const {
    parallel_for(shape_.rows(), std::max<int64_t>(1, kGrain / std::max<int64_t>(1, shape_.k)),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t row = begin; row < end; ++row) fn(row);
                 });
  }

  // `largest` is null per token, or holds a place for each row.
  int32_t by_rows(float* largest) const {
    auto* scale = static_cast<float*>(args_.scale.data);
    if (largest == nullptr) {
      for_rows([&](int64_t row) {
        scale[row] = row_largest(row) / limit_;
        quantize_row(row, scale[row]);
      });
      return ANYNPU_OK;
    }
    for_rows([&](int64_t row) { largest[row] = row_largest(row); });
    *scale = shape_.rows() == 0 ? 0.0f : *std::max_element(largest, largest + shape_.rows()) / limit_;
    for_rows([&](int64_t row) { quantize_row(row, *scale); });
    return ANYNPU_OK;
  }

  void per_channel() const {
    const int64_t tiles = (shape_.k + kTile - 1) / kTile;
    parallel_for(shape_.batches * tiles, std::max<int64_t>(1, kGrain / kTile / std::max<int64_t>(1, shape_.m)),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t task = begin; task < end; ++task) columns(task / tiles, task % tiles * kTile);
                 });
  }

  void columns(int64_t batch, int64_t at) const {
    const int64_t count = std::min(kTile, shape_.k - at);
    float values[kTile], largest[kTile] = {};
    for (int64_t row = batch * shape_.m; row < (batch + 1) * shape_.m; ++row) {
      load(row, at, count, values);
      kernel_.grow(values, count, largest);
    }
    float* scale = static_cast<float*>(args_.scale.data) + batch * shape_.k + at;
    for (int64_t i = 0; i < count; ++i) scale[i] = largest[i] / limit_;
    for (int64_t row = batch * shape_.m; row < (batch + 1) * shape_.m; ++row) {
      load(row, at, count, values);
      quantize(row, at, count, values, scale, true);
    }
  }

  const anynpu_dynamic_quant_args& args_;
  const Shape shape_;
  const DynamicQuantKernel& kernel_;
  const float limit_;
};

}  // namespace

const DynamicQuantKernel& dynamic_quant_kernel() { return pick(kKernels); }

}  // namespace anynpu

using anynpu::check_data;
using anynpu::fail;

extern "C" int32_t anynpu_dynamic_quant_check(const anynpu_dynamic_quant_args* args, size_t* workspace_bytes) {
  if (args == nullptr || workspace_bytes == nullptr) return fail(ANYNPU_NULL_ARG, "dynamic_quant: null argument");
  *workspace_bytes = 0;
  return anynpu::check(*args);
}

extern "C" int32_t anynpu_dynamic_quant(const anynpu_dynamic_quant_args* args, void*, size_t) {
  size_t workspace_bytes = 0;
  ANYNPU_TRY(anynpu_dynamic_quant_check(args, &workspace_bytes));
  ANYNPU_TRY(check_data("dynamic_quant", "x", args->x));
  ANYNPU_TRY(check_data("dynamic_quant", "smooth_scales", args->smooth_scales));
  ANYNPU_TRY(check_data("dynamic_quant", "group_index", args->group_index));
  ANYNPU_TRY(check_data("dynamic_quant", "y", args->y));
  ANYNPU_TRY(check_data("dynamic_quant", "scale", args->scale));
  return anynpu::Quantizer(*args).run();
}
