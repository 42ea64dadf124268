// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

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
constexpr int64_t kMostRows = int64_t{1} << 40;
using Args = anynpu_float_matmul_args;

// The matrices with the batch axes of y before M, K and N.
struct Problem {
  anynpu_tensor x1, x2, y;
  int64_t batches, m, k, n;
  bool by_columns;       // the columns of x2 are side by side in memory, not its rows
  int64_t chunk_stride;  // of x2 in FRACTAL_NZ: elements between its columns of blocks
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

bool in_blocks(const anynpu_tensor& tensor) { return tensor.format == ANYNPU_FRACTAL_NZ; }

// The steps of x2 in blocks, which its strides do not tell.
int32_t measure_blocks(Problem* problem) {
  anynpu_tensor& x2 = problem->x2;
  if (!in_blocks(x2) || element_count(x2) == 0) return ANYNPU_OK;
  anynpu_tensor stored = x2;
  const int column = x2.ndim - 1, row = x2.ndim - 2;
  problem->by_columns = x2.ndim >= 2 && !is_contiguous(x2);
  if (problem->by_columns) {
    std::swap(stored.shape[row], stored.shape[column]);
    std::swap(stored.strides[row], stored.strides[column]);
  }
  if (x2.ndim < 2 || x2.nz_c0 < 0 || !is_contiguous(stored)) {
    return fail(ANYNPU_BAD_SHAPE,
                "%s: a FRACTAL_NZ x2 must be contiguous, or that with its last two axes swapped, got %s", kOp,
                shape_text(x2));
  }
  const int64_t c0 = nz_c0(x2);
  int64_t step = 0;
  bool fits = stored.shape[row] <= kMostRows && stored.shape[column] <= kMostRows &&
              !__builtin_mul_overflow(round_up(stored.shape[row], 16), c0, &problem->chunk_stride) &&
              !__builtin_mul_overflow(problem->chunk_stride, ceil_divide(stored.shape[column], c0), &step);
  for (int axis = row - 1; fits && axis >= 0; --axis) {
    x2.strides[axis] = step;
    fits = !__builtin_mul_overflow(step, x2.shape[axis], &step);
  }
  if (fits && step <= INT64_MAX / 8) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE, "%s: a FRACTAL_NZ x2 is too large, got %s", kOp, shape_text(x2));
}

int32_t check(const Args& args, Problem* problem) {
  const struct {
    const char* name;
    const anynpu_tensor* tensor;
  } tensors[] = {{"x1", &args.x1}, {"x2", &args.x2}, {"y", &args.y}};
  for (const auto& entry : tensors) {
    anynpu_tensor tensor = *entry.tensor;
    if (entry.tensor == &args.x2 && in_blocks(tensor)) tensor.format = ANYNPU_ND;  // the other rules are the same
    ANYNPU_TRY(check_float(kOp, entry.name, tensor));
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
  ANYNPU_TRY(measure_blocks(problem));
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
  if (!in_blocks(x2)) problem->by_columns = x2.strides[axes] == 1;
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
        x2_(weight(problem, batch)),
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
    int32_t dtype = 0;
    char* data = nullptr;
    int64_t row_stride = 0, column_stride = 0;
    int64_t chunk = 0, chunk_stride = 0;  // columns side by side in blocks; 0: all
    char* at(int64_t row, int64_t column) const {
      return data + (row * row_stride + column * column_stride) * (dtype_bits(dtype) / 8);
    }
    void widen(const FloatKernel& kernel, int64_t row, int64_t column, int64_t count, float* to) const {
      if (chunk == 0) return kernel.widen(dtype, at(row, column), column_stride, count, to);
      for (const int64_t end = column + count; column < end;) {
        const int64_t inside = column % chunk, run = std::min(end - column, chunk - inside);
        const char* from = at(row, inside) + column / chunk * chunk_stride * (dtype_bits(dtype) / 8);
        kernel.widen(dtype, from, 1, run, to);
        column += run;
        to += run;
      }
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

  // x2, or its transpose where the elements of its columns are side by side.
  static Matrix weight(const Problem& problem, int64_t batch) {
    Matrix made = matrix(problem.x2, batch);
    if (problem.by_columns) std::swap(made.row_stride, made.column_stride);
    if (in_blocks(problem.x2)) {
      made.column_stride = 1;
      made.row_stride = made.chunk = nz_c0(problem.x2);
      made.chunk_stride = problem.chunk_stride;
    }
    return made;
  }

  void load_panel(int64_t depth, int64_t count) const {
    if (columns_ < kMatmulColumns) std::fill_n(scratch_.panel, count * kMatmulColumns, 0.0f);
    if (!problem_.by_columns) {
      for (int64_t i = 0; i < count; ++i) {
        x2_.widen(kernel_, depth + i, column_, columns_, scratch_.panel + i * kMatmulColumns);
      }
      return;
    }
    float column[kDepth];
    for (int64_t j = 0; j < columns_; ++j) {
      x2_.widen(kernel_, column_ + j, depth, count, column);
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
  anynpu::Problem problem = {};
  return anynpu::check(*args, &problem);
}

extern "C" int32_t anynpu_float_matmul(const anynpu_float_matmul_args* args, void*, size_t) {
  if (args == nullptr) return anynpu::fail(ANYNPU_NULL_ARG, "float_matmul: null argument");
  anynpu::Problem problem = {};
  ANYNPU_TRY(anynpu::check(*args, &problem));
  ANYNPU_TRY(anynpu::check_data(anynpu::kOp, "x1", args->x1));
  ANYNPU_TRY(anynpu::check_data(anynpu::kOp, "x2", args->x2));
  ANYNPU_TRY(anynpu::check_data(anynpu::kOp, "y", args->y));
  return problem.batches == 0 ? ANYNPU_OK : anynpu::run(problem);
}
