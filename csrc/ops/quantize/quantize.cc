// SPDX-License-Identifier: Apache-2.0
#include "ops/quantize/quantize.h"

#include <algorithm>
#include <memory>
#include <new>

#include "core/parallel.h"
#include "core/strided.h"
#include "ops/cast/cast.h"

namespace anynpu {

ANYNPU_KERNELS(QuantizeKernel, quantize)

namespace {

constexpr const char* kOp = "quantize";
constexpr int64_t kTile = 1024;  // values in one step, a multiple of kQuantizeBlock
constexpr int64_t kGrain = 16;   // tiles a thread; below it a second thread costs more than it gives

int32_t check_x(const anynpu_tensor& x) {
  ANYNPU_TRY(check_required(kOp, "x", x));
  ANYNPU_TRY(check_dtype(kOp, "x", x, {ANYNPU_FLOAT32, ANYNPU_FLOAT16, ANYNPU_BFLOAT16}));
  if (x.format != ANYNPU_ND) return fail(ANYNPU_UNSUPPORTED, "%s: x in FRACTAL_NZ is not implemented, use ND", kOp);
  if (x.ndim < 1) return fail(ANYNPU_BAD_SHAPE, "%s: x must have 1 to %d axes, got 0", kOp, ANYNPU_MAX_DIMS);
  return check_strides(kOp, "x", x, Access::read);
}

// The axis of x that the scales run along. One scale fits x whatever the axis.
int32_t resolve_axis(const anynpu_quantize_args& args, int* axis) {
  const int64_t ndim = args.x.ndim;
  const int64_t wanted = !args.div_mode && args.axis > -2 ? -1 : args.axis;
  if (wanted >= -ndim && wanted < ndim) {
    *axis = static_cast<int>(wanted < 0 ? wanted + ndim : wanted);
    return ANYNPU_OK;
  }
  *axis = 0;
  if (args.scales.ndim == 1 && args.scales.shape[0] == 1 &&
      (!present(args.zero_points) || (args.zero_points.ndim == 1 && args.zero_points.shape[0] == 1))) {
    return ANYNPU_OK;
  }
  return fail(ANYNPU_BAD_SHAPE, "%s: axis must be in [%lld, %lld] (x is %s), got %lld", kOp, wide(-ndim),
              wide(ndim - 1), shape_text(args.x), wide(args.axis));
}

// Shape (1), (x.shape[axis]), or that along `axis` and 1 elsewhere.
int32_t check_channels(const char* name, const anynpu_tensor& tensor, const anynpu_tensor& x, int axis) {
  bool fits = tensor.format == ANYNPU_ND;
  if (tensor.ndim == 1) {
    fits = fits && (tensor.shape[0] == 1 || tensor.shape[0] == x.shape[axis]);
  } else {
    fits = fits && tensor.ndim == x.ndim;
    for (int i = 0; fits && i < tensor.ndim; ++i) {
      fits = tensor.shape[i] == 1 || (i == axis && tensor.shape[i] == x.shape[i]);
    }
  }
  if (!fits) {
    return fail(ANYNPU_BAD_SHAPE,
                "%s: %s must be ND of shape (1,), (%lld,), or that along axis %d and 1 elsewhere (x is %s), got %s",
                kOp, name, wide(x.shape[axis]), axis, shape_text(x), shape_text(tensor));
  }
  return check_strides(kOp, name, tensor, Access::read);
}

int32_t check_y(const anynpu_quantize_args& args) {
  const anynpu_tensor &x = args.x, &y = args.y;
  ANYNPU_TRY(check_required(kOp, "y", y));
  const bool known = args.div_mode ? y.dtype == ANYNPU_INT8 || y.dtype == ANYNPU_UINT8 || y.dtype == ANYNPU_INT32
                                   : y.dtype == ANYNPU_INT8 || y.dtype == ANYNPU_INT4 || y.dtype == ANYNPU_INT32;
  if (!known) {
    return fail(
        ANYNPU_BAD_DTYPE, "%s: y must be %s, got %s", kOp,
        args.div_mode ? "int8, uint8 or int32 with div_mode" : "int8, int4 or int32 (eight int4) without div_mode",
        dtype_name(y.dtype));
  }
  anynpu_tensor expected = x;
  if (!args.div_mode && y.dtype != ANYNPU_INT8) {
    int64_t& last = expected.shape[x.ndim - 1];
    const int multiple = y.dtype == ANYNPU_INT32 ? 8 : 2;
    if (last % multiple != 0) {
      return fail(ANYNPU_BAD_SHAPE, "%s: x last dim must be divisible by %d for int4, got %lld", kOp, multiple,
                  wide(last));
    }
    if (y.dtype == ANYNPU_INT32) last /= 8;
  }
  ANYNPU_TRY(check_shape(kOp, "y", y, expected));
  if (y.format != ANYNPU_ND) return fail(ANYNPU_BAD_SHAPE, "%s: y must be ND", kOp);
  if (y.dtype == ANYNPU_INT4 && !is_contiguous(y)) {
    return fail(ANYNPU_BAD_SHAPE, "%s: y must be contiguous when it is int4", kOp);
  }
  return check_strides(kOp, "y", y, Access::write);
}

int32_t check(const anynpu_quantize_args& args) {
  const anynpu_tensor &scales = args.scales, &zero_points = args.zero_points;
  ANYNPU_TRY(check_x(args.x));
  ANYNPU_TRY(check_required(kOp, "scales", scales));
  ANYNPU_TRY(check_tensor(kOp, "zero_points", zero_points));
  ANYNPU_TRY(check_dtype(kOp, "scales", scales, {ANYNPU_FLOAT32, ANYNPU_FLOAT16, ANYNPU_BFLOAT16}));
  ANYNPU_TRY(
      args.div_mode
          ? check_dtype(kOp, "zero_points", zero_points,
                        {ANYNPU_INT8, ANYNPU_UINT8, ANYNPU_INT32, ANYNPU_FLOAT32, ANYNPU_FLOAT16, ANYNPU_BFLOAT16})
          : check_dtype(kOp, "zero_points", zero_points, {ANYNPU_FLOAT32, ANYNPU_FLOAT16, ANYNPU_BFLOAT16}));
  int axis = 0;
  ANYNPU_TRY(resolve_axis(args, &axis));
  ANYNPU_TRY(check_channels("scales", scales, args.x, axis));
  if (present(zero_points)) ANYNPU_TRY(check_channels("zero_points", zero_points, args.x, axis));
  return check_y(args);
}

// The scales or zero points of one call, converted once.
template <typename T>
class Channels {
 public:
  // Values of `tensor` in T, whose dtype code is `dtype`; one `absent` when there is no tensor.
  bool load(const anynpu_tensor& tensor, int32_t dtype, T absent) {
    count_ = present(tensor) ? element_count(tensor) : 1;
    values_.reset(new (std::nothrow) T[count_]);
    if (!values_) return false;
    values_[0] = absent;
    if (!present(tensor)) return true;
    const CastFunction convert = cast_function(tensor.dtype, dtype);
    for (int64_t first = 0; first < count_; first += kTile) {
      const int64_t count = std::min(kTile, count_ - first);
      alignas(64) char raw[4 * kTile];
      gather(tensor, first, count, raw);
      convert(raw, count, values_.get() + first);
    }
    return true;
  }

  bool single() const { return count_ == 1; }

  // One value for each element of [first, first + count) of x, where `inner` neighbours share a channel.
  void expand(int64_t first, int64_t count, int64_t inner, T* to) const {
    if (single()) {
      std::fill(to, to + count, values_[0]);
      return;
    }
    for (int64_t done = 0; done < count;) {
      const int64_t channel = (first + done) / inner % count_;
      const int64_t left = inner == 1 ? count_ - channel : inner - (first + done) % inner;
      const int64_t run = std::min(left, count - done);
      if (inner == 1) {
        std::copy(values_.get() + channel, values_.get() + channel + run, to + done);
      } else {
        std::fill(to + done, to + done + run, values_[channel]);
      }
      done += run;
    }
  }

 private:
  int64_t count_ = 0;
  std::unique_ptr<T[]> values_;
};

QuantizeFunction choose(const anynpu_quantize_args& args) {
  const QuantizeKernel& kernel = quantize_kernel();
  if (!args.div_mode) return args.y.dtype == ANYNPU_INT8 ? kernel.multiply_int8 : kernel.multiply_int4;
  if (args.y.dtype == ANYNPU_INT8) return kernel.divide_int8;
  return args.y.dtype == ANYNPU_UINT8 ? kernel.divide_uint8 : kernel.divide_int32;
}

// Values of x that one element of y holds.
int64_t values_per_element(const anynpu_quantize_args& args) {
  return !args.div_mode && args.y.dtype == ANYNPU_INT32 ? 8 : 1;
}

void load_floats(const anynpu_tensor& x, CastFunction convert, int64_t first, int64_t count, float* to) {
  alignas(64) char raw[4 * kTile];
  if (is_contiguous(x)) {
    convert(static_cast<const char*>(x.data) + first * dtype_bits(x.dtype) / 8, count, to);
  } else {
    gather(x, first, count, raw);
    convert(raw, count, to);
  }
}

void quantize_tile(const anynpu_quantize_args& args, QuantizeFunction quantize, const float* x, const float* scales,
                   const double* zero_points, int64_t first, int64_t count) {
  const int64_t per_element = values_per_element(args);
  if (is_contiguous(args.y)) {
    void* y = static_cast<char*>(args.y.data) + first / per_element * dtype_bits(args.y.dtype) / 8;
    return quantize(x, scales, zero_points, count, y);
  }
  alignas(64) char tile[4 * kTile];
  quantize(x, scales, zero_points, count, tile);
  scatter(tile, args.y, first / per_element, count / per_element);
}

int32_t run(const anynpu_quantize_args& args) {
  const int64_t total = element_count(args.x);
  if (total == 0) return ANYNPU_OK;
  int axis = 0;
  ANYNPU_TRY(resolve_axis(args, &axis));
  int64_t inner = 1;
  for (int i = axis + 1; i < args.x.ndim; ++i) inner *= args.x.shape[i];
  Channels<float> scales;
  Channels<double> zero_points;
  if (!scales.load(args.scales, ANYNPU_FLOAT32, 1.0f) || !zero_points.load(args.zero_points, ANYNPU_FLOAT64, 0.0)) {
    return fail(ANYNPU_NO_MEMORY, "%s: no memory for the scales", kOp);
  }
  const QuantizeFunction quantize = choose(args);
  const CastFunction to_float = cast_function(args.x.dtype, ANYNPU_FLOAT32);
  parallel_for((total + kTile - 1) / kTile, kGrain, [&](int64_t begin, int64_t end) {
    alignas(64) float x_tile[kTile] = {}, scale_tile[kTile] = {};
    alignas(64) double zero_point_tile[kTile] = {};
    for (int64_t first = begin * kTile; first < std::min(end * kTile, total); first += kTile) {
      const int64_t count = std::min(kTile, total - first);
      const bool fresh = first == begin * kTile;
      if (fresh || !scales.single()) scales.expand(first, count, inner, scale_tile);
      if (fresh || !zero_points.single()) zero_points.expand(first, count, inner, zero_point_tile);
      load_floats(args.x, to_float, first, count, x_tile);
      quantize_tile(args, quantize, x_tile, scale_tile, zero_point_tile, first, count);
    }
  });
  return ANYNPU_OK;
}

}  // namespace

const QuantizeKernel& quantize_kernel() { return pick(kKernels); }

}  // namespace anynpu

extern "C" int32_t anynpu_quantize_check(const anynpu_quantize_args* args, size_t* workspace_bytes) {
  if (args == nullptr || workspace_bytes == nullptr) return anynpu::fail(ANYNPU_NULL_ARG, "quantize: null argument");
  *workspace_bytes = 0;
  return anynpu::check(*args);
}

extern "C" int32_t anynpu_quantize(const anynpu_quantize_args* args, void*, size_t) {
  size_t workspace_bytes = 0;
  ANYNPU_TRY(anynpu_quantize_check(args, &workspace_bytes));
  ANYNPU_TRY(anynpu::check_data(anynpu::kOp, "x", args->x));
  ANYNPU_TRY(anynpu::check_data(anynpu::kOp, "scales", args->scales));
  ANYNPU_TRY(anynpu::check_data(anynpu::kOp, "zero_points", args->zero_points));
  ANYNPU_TRY(anynpu::check_data(anynpu::kOp, "y", args->y));
  return anynpu::run(*args);
}
