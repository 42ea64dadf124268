// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstring>
#include <limits>

#include "core/integer.h"
#include "core/parallel.h"
#include "core/scratch.h"
#include "core/strided.h"
#include "ops/float_operators/float_operators.h"

namespace anynpu {
namespace {

constexpr const char* kOp = "float_matmul";
constexpr int64_t kDepth = 256;      // rows of a panel
constexpr int64_t kGrain = 1 << 16;  // products a thread
using Args = anynpu_float_matmul_args;

// The matrices with the batch axes of y before M, K and N.
struct Problem {
  anynpu_tensor x1, x2, y;
  int64_t batches, m, k, n;
};

void insert_axis(anynpu_tensor& tensor, int at) {
  std::copy_backward(tensor.shape + at, tensor.shape + tensor.ndim, tensor.shape + tensor.ndim + 1);
  std::copy_backward(tensor.strides + at, tensor.strides + tensor.ndim, tensor.strides + tensor.ndim + 1);
  tensor.shape[at] = 1;
  tensor.strides[at] = 0;
  ++tensor.ndim;
}

int32_t fail_shapes(const Args& args) {
  return fail(ANYNPU_BAD_SHAPE,
              "%s: x1 [.., M, K], x2 [.., K, N] and y [.., M, N] must fit together, got %s, %s and %s", kOp,
              shape_text(args.x1), shape_text(args.x2), shape_text(args.y));
}

int32_t check(const Args& args, Problem* problem) {
  const struct {
    const char* name;
    const anynpu_tensor* tensor;
  } tensors[] = {{"x1", &args.x1}, {"x2", &args.x2}, {"y", &args.y}};
  for (const auto& entry : tensors) {
    ANYNPU_TRY(check_float(kOp, entry.name, *entry.tensor));
    const bool is_y = entry.tensor == &args.y;
    if (entry.tensor->dtype == args.x1.dtype || (is_y && args.y.dtype == ANYNPU_FLOAT32)) continue;
    return fail(ANYNPU_BAD_DTYPE, "%s: %s must be %s as x1 is%s, got %s", kOp, entry.name, dtype_name(args.x1.dtype),
                is_y && args.x1.dtype != ANYNPU_FLOAT32 ? ", or float32" : "", dtype_name(entry.tensor->dtype));
  }
  ANYNPU_TRY(check_strides(kOp, "y", args.y, Access::write));
  problem->x1 = args.x1;
  problem->x2 = args.x2;
  problem->y = args.y;
  anynpu_tensor &x1 = problem->x1, &x2 = problem->x2, &y = problem->y;
  const bool one_row = x1.ndim == 1, one_column = x2.ndim == 1;
  if (x1.ndim < 1 || x2.ndim < 1 || y.ndim + one_row + one_column > ANYNPU_MAX_DIMS) return fail_shapes(args);
  if (one_row) insert_axis(x1, 0);
  if (one_column) insert_axis(x2, 1);
  if (one_column) insert_axis(y, y.ndim);
  if (one_row) {
    if (y.ndim < 1) return fail_shapes(args);
    insert_axis(y, y.ndim - 1);
  }
  if (y.ndim < 2) return fail_shapes(args);
  const int axes = y.ndim - 2;
  const anynpu_tensor given[] = {x1, x2};
  if (!expand(x1, y, axes) || !expand(x2, y, axes)) return fail_shapes(args);
  for (int axis = 0; axis < axes; ++axis) {  // the result repeats nothing
    bool found = y.shape[axis] == 1;
    for (const anynpu_tensor& x : given) {
      const int own = axis - (y.ndim - x.ndim);
      found = found || (own >= 0 && x.shape[own] == y.shape[axis]);
    }
    if (!found) return fail_shapes(args);
  }
  problem->m = y.shape[axes];
  problem->n = y.shape[axes + 1];
  problem->k = x1.shape[axes + 1];
  if (x1.shape[axes] != problem->m || x2.shape[axes] != problem->k || x2.shape[axes + 1] != problem->n) {
    return fail_shapes(args);
  }
  problem->batches = 1;
  if (element_count(y) == 0) {
    problem->batches = 0;
    return ANYNPU_OK;
  }
  for (int axis = 0; axis < axes; ++axis) problem->batches *= y.shape[axis];
  return ANYNPU_OK;
}

// The memory of one thread.
struct Scratch {
  float *panel, *x, *sums;
  static constexpr int64_t kFloats = kDepth * kMatmulColumns + kMatmulRows * kDepth + kMatmulRows * kMatmulColumns;
  explicit Scratch(float* memory) : panel(memory), x(panel + kDepth * kMatmulColumns), sums(x + kMatmulRows * kDepth) {}
};

// One block of y.
class Block {
 public:
  Block(const Problem& problem, int64_t batch, int64_t row, int64_t column, const Scratch& scratch)
      : problem_(problem),
        kernel_(float_kernel()),
        scratch_(scratch),
        row_(row),
        column_(column),
        rows_(std::min<int64_t>(kMatmulRows, problem.m - row)),
        columns_(std::min<int64_t>(kMatmulColumns, problem.n - column)),
        x1_(matrix(problem.x1, batch)),
        x2_(matrix(problem.x2, batch)),
        y_(matrix(problem.y, batch)) {}

  void multiply() const {
    std::fill_n(scratch_.sums, rows_ * kMatmulColumns, 0.0f);
    for (int64_t depth = 0; depth < problem_.k; depth += kDepth) {
      const int64_t count = std::min(kDepth, problem_.k - depth);
      load_panel(depth, count);
      for (int64_t i = 0; i < rows_; ++i) {
        kernel_.widen(x1_.dtype, x1_.at(row_ + i, depth), x1_.column_stride, count, scratch_.x + i * kDepth);
      }
      kernel_.add_products(scratch_.x, kDepth, scratch_.panel, rows_, count, scratch_.sums);
    }
    for (int64_t i = 0; i < rows_; ++i) {
      kernel_.narrow(y_.dtype, scratch_.sums + i * kMatmulColumns, columns_, y_.at(row_ + i, column_),
                     y_.column_stride);
    }
  }

 private:
  struct Matrix {
    int32_t dtype;
    char* data;
    int64_t row_stride, column_stride;
    char* at(int64_t row, int64_t column) const {
      return data + (row * row_stride + column * column_stride) * (dtype_bits(dtype) / 8);
    }
  };

  static Matrix matrix(const anynpu_tensor& tensor, int64_t batch) {
    if (element_count(tensor) == 0) return {};  // its address and strides may be anything
    int64_t offset = 0;
    for (int axis = tensor.ndim - 3; axis >= 0; --axis) {
      offset += batch % tensor.shape[axis] * tensor.strides[axis];
      batch /= tensor.shape[axis];
    }
    return {tensor.dtype, static_cast<char*>(tensor.data) + offset * (dtype_bits(tensor.dtype) / 8),
            tensor.strides[tensor.ndim - 2], tensor.strides[tensor.ndim - 1]};
  }

  void load_panel(int64_t depth, int64_t count) const {
    if (columns_ < kMatmulColumns) std::fill_n(scratch_.panel, count * kMatmulColumns, 0.0f);
    if (x2_.row_stride != 1) {
      for (int64_t i = 0; i < count; ++i) {
        kernel_.widen(x2_.dtype, x2_.at(depth + i, column_), x2_.column_stride, columns_,
                      scratch_.panel + i * kMatmulColumns);
      }
      return;
    }
    float column[kDepth];
    for (int64_t j = 0; j < columns_; ++j) {
      kernel_.widen(x2_.dtype, x2_.at(depth, column_ + j), 1, count, column);
      for (int64_t i = 0; i < count; ++i) scratch_.panel[i * kMatmulColumns + j] = column[i];
    }
  }

  const Problem& problem_;
  const FloatKernel& kernel_;
  const Scratch& scratch_;
  int64_t row_, column_, rows_, columns_;
  Matrix x1_, x2_, y_;
};

int32_t run(const Problem& problem) {
  const int64_t row_blocks = ceil_divide(problem.m, kMatmulRows), blocks = ceil_divide(problem.n, kMatmulColumns);
  const int64_t tasks = problem.batches * row_blocks * blocks;
  const int64_t depth = std::clamp<int64_t>(problem.k, 1, kGrain);
  const int64_t products = std::min<int64_t>(kMatmulRows, problem.m) * kMatmulColumns * depth;
  const int threads = thread_count(tasks, std::max<int64_t>(1, kGrain / products));
  auto* memory = static_cast<float*>(scratch(ScratchSlot::main, threads * Scratch::kFloats * sizeof(float)));
  if (memory == nullptr) return fail(ANYNPU_NO_MEMORY, "%s: no memory for %d threads", kOp, threads);
  parallel_tasks(threads, tasks, [&](int64_t task, int64_t thread) {
    const Scratch own(memory + thread * Scratch::kFloats);
    const int64_t rest = task / blocks;
    Block(problem, rest / row_blocks, rest % row_blocks * kMatmulRows, task % blocks * kMatmulColumns, own).multiply();
  });
  return ANYNPU_OK;
}

}  // namespace
}  // namespace anynpu

extern "C" int32_t anynpu_float_matmul_check(const anynpu_float_matmul_args* args, size_t* workspace_bytes) {
  if (args == nullptr || workspace_bytes == nullptr) {
    return anynpu::fail(ANYNPU_NULL_ARG, "float_matmul: null argument");
  }
  *workspace_bytes = 0;
  anynpu::Problem problem;
  return anynpu::check(*args, &problem);
}

extern "C" int32_t anynpu_float_matmul(const anynpu_float_matmul_args* args, void*, size_t) {
  if (args == nullptr) return anynpu::fail(ANYNPU_NULL_ARG, "float_matmul: null argument");
  anynpu::Problem problem;
  ANYNPU_TRY(anynpu::check(*args, &problem));
  ANYNPU_TRY(anynpu::check_data(anynpu::kOp, "x1", args->x1));
  ANYNPU_TRY(anynpu::check_data(anynpu::kOp, "x2", args->x2));
  ANYNPU_TRY(anynpu::check_data(anynpu::kOp, "y", args->y));
  return problem.batches == 0 ? ANYNPU_OK : anynpu::run(problem);
}
