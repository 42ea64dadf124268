// SPDX-License-Identifier: Apache-2.0
#include "ops/float_operators/float_operators.h"

#include "core/strided.h"

namespace anynpu {

ANYNPU_KERNELS(FloatKernel, float_operators)

const FloatKernel& float_kernel() { return pick(kKernels); }

int32_t check_float(const char* op, const char* name, const anynpu_tensor& tensor) {
  return check_view(op, name, tensor, {ANYNPU_FLOAT32, ANYNPU_FLOAT16, ANYNPU_BFLOAT16});
}

bool expand(anynpu_tensor& x, const anynpu_tensor& like, int axes) {
  const int kept = like.ndim - axes;  // axes at the end that stay as they are
  const anynpu_tensor given = x;
  if (given.ndim > like.ndim || given.ndim < kept) return false;
  const int more = like.ndim - given.ndim;
  x.ndim = like.ndim;
  for (int axis = 0; axis < like.ndim; ++axis) {
    const bool own = axis >= more;
    x.shape[axis] = own ? given.shape[axis - more] : 1;
    x.strides[axis] = own ? given.strides[axis - more] : 0;
    if (axis >= axes || x.shape[axis] == like.shape[axis]) continue;
    if (x.shape[axis] != 1) return false;
    x.shape[axis] = like.shape[axis];
    x.strides[axis] = 0;
  }
  return true;
}

}  // namespace anynpu
