// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "core/parallel.h"
#include "core/strided.h"
#include "ops/float_operators/float_operators.h"

namespace anynpu {
namespace {

constexpr const char* kOp = "float_elementwise";
constexpr int64_t kGrain = 1 << 14;  // values a thread
constexpr int64_t kPiece = 1024;     // values that are worked on at once
using Args = anynpu_float_elementwise_args;

// x1 and x2 as they are read: repeated to the shape of y.
struct Operands {
  anynpu_tensor x1, x2;
  bool has_two;
};

int32_t check_operand(const char* name, anynpu_tensor& x, const anynpu_tensor& y) {
  ANYNPU_TRY(check_float(kOp, name, x));
  const anynpu_tensor given = x;
  if (expand(x, y, y.ndim)) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE, "%s: %s must broadcast to the shape of the result, %s, got %s", kOp, name,
              shape_text(y), shape_text(given));
}

int32_t check(const Args& args, Operands* operands) {
  ANYNPU_TRY(check_float(kOp, "y", args.y));
  ANYNPU_TRY(check_strides(kOp, "y", args.y, Access::write));
  if (args.operation < ANYNPU_FLOAT_ADD || args.operation > ANYNPU_FLOAT_DIVIDE) {
    return fail(ANYNPU_BAD_SHAPE, "%s: operation must be 0, 1, 2 or 3, got %d", kOp, args.operation);
  }
  operands->has_two = args.operation != ANYNPU_FLOAT_SILU;
  operands->x1 = present(args.x1) ? args.x1 : args.y;
  ANYNPU_TRY(check_operand("x1", operands->x1, args.y));
  if (!operands->has_two) return ANYNPU_OK;
  operands->x2 = args.x2;
  return check_operand("x2", operands->x2, args.y);
}

// Whether each axis of y is that of x1 or x2: the result does not repeat what is the same.
int32_t check_size(const Args& args) {
  const anynpu_tensor& x1 = present(args.x1) ? args.x1 : args.y;
  for (int axis = 1; axis <= args.y.ndim; ++axis) {
    const int64_t size = args.y.shape[args.y.ndim - axis];
    bool found = size == 1;
    for (const anynpu_tensor* x : {&x1, &args.x2}) {
      found = found || (present(*x) && x->ndim >= axis && x->shape[x->ndim - axis] == size);
    }
    if (!found) {
      return fail(ANYNPU_BAD_SHAPE, "%s: the result must have the shape that x1 and x2 broadcast to, got %s", kOp,
                  shape_text(args.y));
    }
  }
  return ANYNPU_OK;
}

void read(const FloatKernel& kernel, const anynpu_tensor& x, int64_t first, int64_t count, float* to) {
  uint32_t raw[kPiece];
  gather(x, first, count, raw);
  kernel.widen(x.dtype, raw, 1, count, to);
}

void work(const Args& args, const Operands& operands, int64_t first, int64_t count) {
  const FloatKernel& kernel = float_kernel();
  float x1[kPiece], x2[kPiece];
  uint32_t raw[kPiece];
  read(kernel, operands.x1, first, count, x1);
  if (operands.has_two) read(kernel, operands.x2, first, count, x2);
  switch (args.operation) {
    case ANYNPU_FLOAT_ADD: kernel.add(x1, x2, args.alpha, count, x1); break;
    case ANYNPU_FLOAT_MULTIPLY: kernel.multiply(x1, x2, count, x1); break;
    case ANYNPU_FLOAT_DIVIDE: kernel.divide(x1, x2, count, x1); break;
    default: kernel.silu(x1, count, x1);
  }
  kernel.narrow(args.y.dtype, x1, count, raw, 1);
  scatter(raw, args.y, first, count);
}

}  // namespace
}  // namespace anynpu

extern "C" int32_t anynpu_float_elementwise_check(const anynpu_float_elementwise_args* args, size_t* workspace_bytes) {
  if (args == nullptr || workspace_bytes == nullptr) {
    return anynpu::fail(ANYNPU_NULL_ARG, "float_elementwise: null argument");
  }
  *workspace_bytes = 0;
  anynpu::Operands operands;
  ANYNPU_TRY(anynpu::check(*args, &operands));
  return anynpu::check_size(*args);
}

extern "C" int32_t anynpu_float_elementwise(const anynpu_float_elementwise_args* args, void*, size_t) {
  size_t bytes = 0;
  ANYNPU_TRY(anynpu_float_elementwise_check(args, &bytes));
  anynpu::Operands operands;
  ANYNPU_TRY(anynpu::check(*args, &operands));
  ANYNPU_TRY(anynpu::check_data(anynpu::kOp, "x1", operands.x1));
  if (operands.has_two) ANYNPU_TRY(anynpu::check_data(anynpu::kOp, "x2", operands.x2));
  ANYNPU_TRY(anynpu::check_data(anynpu::kOp, "y", args->y));
  anynpu::parallel_for(anynpu::element_count(args->y), anynpu::kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; at += anynpu::kPiece) {
      anynpu::work(*args, operands, at, std::min(end - at, anynpu::kPiece));
    }
  });
  return ANYNPU_OK;
}
