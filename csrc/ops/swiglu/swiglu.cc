// SPDX-License-Identifier: Apache-2.0
#include "ops/swiglu/swiglu.h"

#include <algorithm>

#include "core/parallel.h"
#include "core/tensor.h"

namespace anynpu {

ANYNPU_KERNELS(SwigluKernel, swiglu)

namespace {

constexpr const char* kOp = "swiglu";
constexpr int64_t kGrain = 1 << 13;  // values a thread; below it a second thread costs more than it gives

// x as [rows][2][length], y as [rows][length].
struct Shape {
  int64_t rows, length;
};

int32_t check_x(const anynpu_tensor& x) {
  ANYNPU_TRY(check_dtype(kOp, "x", x, {ANYNPU_FLOAT32, ANYNPU_FLOAT16, ANYNPU_BFLOAT16}));
  if (x.ndim < 1) return fail(ANYNPU_BAD_SHAPE, "%s: x must have 1 to %d axes, got 0", kOp, ANYNPU_MAX_DIMS);
  return check_plain(kOp, "x", x);
}

int32_t check(const anynpu_swiglu_args& args, Shape* shape) {
  const anynpu_tensor &x = args.x, &y = args.y;
  ANYNPU_TRY(check_required(kOp, "x", x));
  ANYNPU_TRY(check_required(kOp, "y", y));
  ANYNPU_TRY(check_x(x));
  if (args.dim < -x.ndim || args.dim >= x.ndim) {
    return fail(ANYNPU_BAD_SHAPE, "%s: dim out of range, expected [%d, %d], got %lld", kOp, -x.ndim, x.ndim - 1,
                wide(args.dim));
  }
  const int64_t dim = args.dim < 0 ? args.dim + x.ndim : args.dim;
  anynpu_tensor halved = x;
  halved.shape[dim] /= 2;
  if (x.shape[dim] % 2 != 0) {
    return fail(ANYNPU_BAD_SHAPE, "%s: the size of x along dim must be even, got %lld", kOp, wide(x.shape[dim]));
  }
  if (y.dtype != x.dtype) {
    return fail(ANYNPU_BAD_DTYPE, "%s: y must be %s as x is, got %s", kOp, dtype_name(x.dtype), dtype_name(y.dtype));
  }
  ANYNPU_TRY(check_shape(kOp, "y", y, halved));
  ANYNPU_TRY(check_plain(kOp, "y", y));
  *shape = {0, 0};
  if (element_count(y) == 0) return ANYNPU_OK;
  *shape = {1, 1};
  for (int axis = 0; axis < x.ndim; ++axis) (axis < dim ? shape->rows : shape->length) *= halved.shape[axis];
  return ANYNPU_OK;
}

void run(const anynpu_swiglu_args& args, const Shape& shape) {
  const SwigluKernel& kernel = pick(kKernels);
  const int64_t bytes = dtype_bits(args.x.dtype) / 8;
  const auto* x = static_cast<const uint8_t*>(args.x.data);
  auto* y = static_cast<uint8_t*>(args.y.data);
  parallel_for(shape.rows * shape.length, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end;) {
      const int64_t row = at / shape.length, count = std::min((row + 1) * shape.length, end) - at;
      const uint8_t* gate = x + (row * shape.length + at) * bytes;
      kernel.activate(args.x.dtype, gate, gate + shape.length * bytes, count, y + at * bytes);
      at += count;
    }
  });
}

}  // namespace
}  // namespace anynpu

using anynpu::check_data;
using anynpu::fail;

extern "C" int32_t anynpu_swiglu_check(const anynpu_swiglu_args* args, size_t* workspace_bytes) {
  if (args == nullptr || workspace_bytes == nullptr) return fail(ANYNPU_NULL_ARG, "swiglu: null argument");
  *workspace_bytes = 0;
  anynpu::Shape shape;
  return anynpu::check(*args, &shape);
}

extern "C" int32_t anynpu_swiglu(const anynpu_swiglu_args* args, void*, size_t) {
  if (args == nullptr) return fail(ANYNPU_NULL_ARG, "swiglu: null argument");
  anynpu::Shape shape;
  ANYNPU_TRY(anynpu::check(*args, &shape));
  ANYNPU_TRY(check_data("swiglu", "x", args->x));
  ANYNPU_TRY(check_data("swiglu", "y", args->y));
  anynpu::run(*args, shape);
  return ANYNPU_OK;
}
