// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <limits>

#include "core/integer.h"
#include "core/parallel.h"
#include "core/scratch.h"
#include "ops/float_operators/float_operators.h"

namespace anynpu {
namespace {

constexpr const char* kOp = "rms_norm";
constexpr int64_t kGrain = 1 << 13;  // values a thread
using Args = anynpu_rms_norm_args;

struct Shape {
  int64_t rows, length;
};

int32_t check_floats(const char* name, const anynpu_tensor& tensor) {
  ANYNPU_TRY(check_float(kOp, name, tensor));
  return check_contiguous(kOp, name, tensor);
}

int32_t check_like_x1(const char* name, const anynpu_tensor& tensor, const anynpu_tensor& x1) {
  ANYNPU_TRY(check_floats(name, tensor));
  if (tensor.dtype != x1.dtype) {
    return fail(ANYNPU_BAD_DTYPE, "%s: %s must be %s as x1 is, got %s", kOp, name, dtype_name(x1.dtype),
                dtype_name(tensor.dtype));
  }
  if (same_shape(tensor, x1)) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE, "%s: %s must have the shape of x1, %s, got %s", kOp, name, shape_text(x1),
              shape_text(tensor));
}

int32_t check_gamma(const anynpu_tensor& x1, const anynpu_tensor& gamma) {
  ANYNPU_TRY(check_floats("gamma", gamma));
  if (gamma.dtype != x1.dtype && gamma.dtype != ANYNPU_FLOAT32) {
    return fail(ANYNPU_BAD_DTYPE, "%s: gamma must be %s as x1 is, or float32, got %s", kOp, dtype_name(x1.dtype),
                dtype_name(gamma.dtype));
  }
  const bool fits = gamma.ndim >= 1 && gamma.ndim <= x1.ndim &&
                    std::equal(gamma.shape, gamma.shape + gamma.ndim, x1.shape + x1.ndim - gamma.ndim);
  if (fits) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE, "%s: gamma must have the shape of the last axes of x1, %s, got %s", kOp, shape_text(x1),
              shape_text(gamma));
}

int32_t check_rstd(const anynpu_tensor& x1, const anynpu_tensor& gamma, const anynpu_tensor& rstd) {
  ANYNPU_TRY(check_floats("rstd", rstd));
  ANYNPU_TRY(check_dtype(kOp, "rstd", rstd, {ANYNPU_FLOAT32}));
  anynpu_tensor expected = x1;
  for (int axis = x1.ndim - gamma.ndim; axis < x1.ndim; ++axis) expected.shape[axis] = 1;
  return check_shape(kOp, "rstd", rstd, expected);
}

int32_t check(const Args& args, Shape* shape) {
  ANYNPU_TRY(check_floats("x1", args.x1));
  if (present(args.x2)) ANYNPU_TRY(check_like_x1("x2", args.x2, args.x1));
  ANYNPU_TRY(check_gamma(args.x1, args.gamma));
  ANYNPU_TRY(check_like_x1("y", args.y, args.x1));
  ANYNPU_TRY(check_rstd(args.x1, args.gamma, args.rstd));
  if (present(args.x2)) ANYNPU_TRY(check_like_x1("x", args.x, args.x1));
  shape->length = element_count(args.gamma);
  shape->rows = element_count(args.rstd);
  return ANYNPU_OK;
}

int64_t row_bytes(const Shape& shape) { return round_up(shape.length * sizeof(float), kScratchAlignment); }
// Two rows of each thread, and gamma.
int64_t memory_for(const Shape& shape, int threads) { return (2 * threads + 1) * row_bytes(shape); }
int threads_for(const Shape& shape) {
  return thread_count(shape.rows, kGrain / std::max<int64_t>(1, shape.length) + 1);
}

const void* row_of(const anynpu_tensor& tensor, int64_t row, int64_t length) {
  return static_cast<const char*>(tensor.data) + row * length * (dtype_bits(tensor.dtype) / 8);
}
void* row_of(anynpu_tensor& tensor, int64_t row, int64_t length) {
  return static_cast<char*>(tensor.data) + row * length * (dtype_bits(tensor.dtype) / 8);
}

void normalise(const Args& args, const Shape& shape, int64_t row, const float* gamma, float* x, float* other) {
  const FloatKernel& kernel = float_kernel();
  const int64_t length = shape.length;
  anynpu_tensor y = args.y, sum = args.x;
  kernel.widen(args.x1.dtype, row_of(args.x1, row, length), 1, length, x);
  if (present(args.x2)) {
    kernel.widen(args.x2.dtype, row_of(args.x2, row, length), 1, length, other);
    kernel.add(x, other, 1, length, x);
    kernel.narrow(sum.dtype, x, length, row_of(sum, row, length), 1);
    kernel.widen(sum.dtype, row_of(sum, row, length), 1, length, x);
  }
  const float mean = kernel.sum_of_squares(x, length) / static_cast<float>(length);
  const float rstd = 1 / std::sqrt(mean + args.epsilon);
  static_cast<float*>(args.rstd.data)[row] = rstd;
  kernel.scale(x, rstd, gamma, length, other);
  kernel.narrow(y.dtype, other, length, row_of(y, row, length), 1);
}

int32_t run(const Args& args, const Shape& shape) {
  // Rows without values have the mean of nothing, as in torch.
  if (shape.length == 0) {
    std::fill_n(static_cast<float*>(args.rstd.data), shape.rows, std::numeric_limits<float>::quiet_NaN());
    return ANYNPU_OK;
  }
  const int threads = threads_for(shape);
  auto* memory = static_cast<char*>(scratch(ScratchSlot::main, memory_for(shape, threads)));
  if (memory == nullptr)
    return fail(ANYNPU_NO_MEMORY, "%s: no memory for rows of %lld values", kOp, wide(shape.length));
  const auto row_at = [&](int64_t index) { return reinterpret_cast<float*>(memory + index * row_bytes(shape)); };
  float* gamma = row_at(2 * threads);
  float_kernel().widen(args.gamma.dtype, args.gamma.data, 1, shape.length, gamma);
  parallel_for(threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t thread = begin; thread < end; ++thread) {
      const int64_t last = shape.rows * (thread + 1) / threads;
      for (int64_t row = shape.rows * thread / threads; row < last; ++row) {
        normalise(args, shape, row, gamma, row_at(2 * thread), row_at(2 * thread + 1));
      }
    }
  });
  return ANYNPU_OK;
}

}  // namespace
}  // namespace anynpu

extern "C" int32_t anynpu_rms_norm_check(const anynpu_rms_norm_args* args, size_t* workspace_bytes) {
  if (args == nullptr || workspace_bytes == nullptr) return anynpu::fail(ANYNPU_NULL_ARG, "rms_norm: null argument");
  *workspace_bytes = 0;
  anynpu::Shape shape;
  return anynpu::check(*args, &shape);
}

extern "C" int32_t anynpu_rms_norm(const anynpu_rms_norm_args* args, void*, size_t) {
  if (args == nullptr) return anynpu::fail(ANYNPU_NULL_ARG, "rms_norm: null argument");
  anynpu::Shape shape;
  ANYNPU_TRY(anynpu::check(*args, &shape));
  const struct {
    const char* name;
    const anynpu_tensor* tensor;
  } tensors[] = {{"x1", &args->x1}, {"x2", &args->x2},     {"gamma", &args->gamma},
                 {"y", &args->y},   {"rstd", &args->rstd}, {"x", &args->x}};
  for (const auto& entry : tensors) {
    if (entry.tensor == &args->x && !anynpu::present(args->x2)) continue;
    ANYNPU_TRY(anynpu::check_data(anynpu::kOp, entry.name, *entry.tensor));
  }
  return shape.rows == 0 ? ANYNPU_OK : anynpu::run(*args, shape);
}
