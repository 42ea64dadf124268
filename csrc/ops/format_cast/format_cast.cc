// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstring>
#include <utility>

#include "core/parallel.h"
#include "core/strided.h"

namespace anynpu {
namespace {

constexpr const char* kOp = "format_cast";
constexpr int64_t kRowsOfBlock = 16;
constexpr int64_t kGrain = 1 << 16;  // bytes a thread; below it a second thread costs more than it gives

// FRACTAL_NZ storage [batch][blocks][padded_rows][c0], in elements of whole bytes.
struct Nz {
  int64_t batch, rows, columns, c0, blocks, padded_rows;
  int64_t lines() const { return batch * blocks * padded_rows; }
};

anynpu_tensor transposed(const anynpu_tensor& tensor) {
  anynpu_tensor view = tensor;
  std::swap(view.shape[view.ndim - 1], view.shape[view.ndim - 2]);
  std::swap(view.strides[view.ndim - 1], view.strides[view.ndim - 2]);
  return view;
}

// The same two int4 tensors as bytes of two.
anynpu_tensor as_bytes(const anynpu_tensor& int4) {
  anynpu_tensor view = int4;
  view.dtype = ANYNPU_UINT8;
  view.shape[view.ndim - 1] /= 2;
  make_contiguous(view);
  return view;
}

int32_t check_int4(const anynpu_tensor& nd, int64_t c0) {
  if (!is_contiguous(nd)) return fail(ANYNPU_BAD_SHAPE, "%s: the ND tensor must be contiguous when it is int4", kOp);
  const int64_t last = nd.shape[nd.ndim - 1];
  if (last % 2 == 0 && c0 % 2 == 0) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE, "%s: the last axis and nz_c0 must be even for int4, got %lld and %lld", kOp, wide(last),
              wide(c0));
}

// Geometry of the storage; refuses one that does not fit in 63 bits.
int32_t measure(const anynpu_tensor& logical, int64_t c0, Nz* nz) {
  *nz = {1, logical.shape[logical.ndim - 2], logical.shape[logical.ndim - 1], c0, 0, 0};
  if (element_count(logical) == 0) return ANYNPU_OK;
  for (int axis = 0; axis < logical.ndim - 2; ++axis) nz->batch *= logical.shape[axis];
  nz->blocks = (nz->columns - 1) / c0 + 1;
  int64_t bits = nz->batch;
  const bool fits = !__builtin_add_overflow(nz->rows, kRowsOfBlock - 1, &nz->padded_rows) &&
                    !__builtin_mul_overflow(bits, nz->blocks, &bits) &&
                    !__builtin_mul_overflow(bits, nz->padded_rows, &bits) && !__builtin_mul_overflow(bits, c0, &bits) &&
                    !__builtin_mul_overflow(bits, int64_t{64}, &bits);
  if (!fits) {
    return fail(ANYNPU_BAD_SHAPE, "%s: FRACTAL_NZ of %s with nz_c0 %lld is too large", kOp, shape_text(logical),
                wide(c0));
  }
  nz->padded_rows = nz->padded_rows / kRowsOfBlock * kRowsOfBlock;
  return ANYNPU_OK;
}

struct Plan {
  anynpu_tensor nd;  // in the axes of the stored matrix
  void* storage;
  Nz nz;
  bool to_nz;
  bool direct;    // nd is contiguous
  int64_t bytes;  // of one element
};

int32_t plan(const anynpu_format_cast_args& args, Plan* plan) {
  const anynpu_tensor &x = args.x, &y = args.y;
  ANYNPU_TRY(check_required(kOp, "x", x));
  ANYNPU_TRY(check_required(kOp, "y", y));
  if (x.dtype != y.dtype) {
    return fail(ANYNPU_BAD_DTYPE, "%s: y must be %s as x is, got %s", kOp, dtype_name(x.dtype), dtype_name(y.dtype));
  }
  if (x.format == y.format) {
    return fail(ANYNPU_BAD_SHAPE, "%s: one of x and y must be ND (2) and the other FRACTAL_NZ (29), got twice %d", kOp,
                x.format);
  }
  if (x.ndim < 2) return fail(ANYNPU_BAD_SHAPE, "%s: x must have at least two axes, got %s", kOp, shape_text(x));
  if (!same_shape(x, y)) {
    return fail(ANYNPU_BAD_SHAPE, "%s: y must have the shape of x, %s, got %s", kOp, shape_text(x), shape_text(y));
  }
  plan->to_nz = y.format == ANYNPU_FRACTAL_NZ;
  anynpu_tensor nz = plan->to_nz ? y : x;
  plan->nd = plan->to_nz ? x : y;
  if (!is_contiguous(nz)) {
    nz = transposed(nz);
    plan->nd = transposed(plan->nd);
  }
  if (!is_contiguous(nz)) {
    return fail(ANYNPU_BAD_SHAPE,
                "%s: the FRACTAL_NZ tensor must be contiguous, or that with its last two axes swapped", kOp);
  }
  plan->storage = nz.data;
  int64_t c0 = nz_c0(nz);
  if (nz.dtype == ANYNPU_INT4) {
    ANYNPU_TRY(check_int4(plan->nd, c0));
    plan->nd = as_bytes(plan->nd);
    c0 /= 2;
  }
  ANYNPU_TRY(check_strides(kOp, plan->to_nz ? "x" : "y", plan->nd, plan->to_nz ? Access::read : Access::write));
  plan->direct = is_contiguous(plan->nd);
  plan->bytes = dtype_bits(plan->nd.dtype) / 8;
  return measure(plan->nd, c0, &plan->nz);
}

// Copies one line of the storage, the `width` elements from `first` on of the ND tensor, then zeros.
void copy_line(const Plan& plan, int64_t first, int64_t width, char* line) {
  const int64_t bytes = plan.bytes;
  char* nd = static_cast<char*>(plan.nd.data) + first * bytes;
  if (!plan.to_nz) {
    if (!plan.direct) return scatter(line, plan.nd, first, width);
    std::memcpy(nd, line, width * bytes);
    return;
  }
  if (plan.direct) {
    std::memcpy(line, nd, width * bytes);
  } else {
    gather(plan.nd, first, width, line);
  }
  std::memset(line + width * bytes, 0, (plan.nz.c0 - width) * bytes);
}

// Copies lines [begin, end) of the storage, a line being c0 elements of one row.
void copy_lines(const Plan& plan, int64_t begin, int64_t end) {
  const Nz& nz = plan.nz;
  const int64_t line_bytes = nz.c0 * plan.bytes;
  for (int64_t at = begin; at < end;) {
    const int64_t plane = at / nz.padded_rows / nz.blocks;
    const int64_t column = at / nz.padded_rows % nz.blocks * nz.c0;
    const int64_t width = std::min(nz.c0, nz.columns - column);
    int64_t row = at % nz.padded_rows;
    const int64_t stop = std::min(end, at + nz.padded_rows - row);
    char* line = static_cast<char*>(plan.storage) + at * line_bytes;
    for (; at < stop && row < nz.rows; ++at, ++row, line += line_bytes) {
      copy_line(plan, (plane * nz.rows + row) * nz.columns + column, width, line);
    }
    if (plan.to_nz) std::memset(line, 0, (stop - at) * line_bytes);
    at = stop;
  }
}

}  // namespace
}  // namespace anynpu

extern "C" int32_t anynpu_format_cast_check(const anynpu_format_cast_args* args, size_t* workspace_bytes) {
  if (args == nullptr || workspace_bytes == nullptr) return anynpu::fail(ANYNPU_NULL_ARG, "format_cast: null argument");
  *workspace_bytes = 0;
  anynpu::Plan plan;
  return anynpu::plan(*args, &plan);
}

extern "C" int32_t anynpu_format_cast(const anynpu_format_cast_args* args, void*, size_t) {
  if (args == nullptr) return anynpu::fail(ANYNPU_NULL_ARG, "format_cast: null argument");
  anynpu::Plan plan;
  ANYNPU_TRY(anynpu::plan(*args, &plan));
  ANYNPU_TRY(anynpu::check_data(anynpu::kOp, "x", args->x));
  ANYNPU_TRY(anynpu::check_data(anynpu::kOp, "y", args->y));
  const int64_t line_bytes = plan.nz.c0 * plan.bytes;
  const int64_t grain = std::max<int64_t>(1, anynpu::kGrain / line_bytes);
  anynpu::parallel_for(plan.nz.lines(), grain, [&](int64_t begin, int64_t end) { copy_lines(plan, begin, end); });
  return ANYNPU_OK;
}
