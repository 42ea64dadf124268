// SPDX-License-Identifier: Apache-2.0
// Float operators that stand beside the quantised ones in a layer. Rows become float32, are worked on, and are rounded.
#pragma once

#include <cstdint>

#include "core/cpu.h"
#include "core/tensor.h"

namespace anynpu {

constexpr int kMatmulColumns = 64;  // of a panel of x2
constexpr int kMatmulRows = 64;     // of x1 that share a panel

struct FloatKernel {
  Isa isa;
  // To and from float32; elements of the other side are `stride` apart.
  void (*widen)(int32_t dtype, const void* from, int64_t stride, int64_t count, float* to);
  void (*narrow)(int32_t dtype, const float* from, int64_t count, void* to, int64_t stride);
  void (*add)(const float* x1, const float* x2, float alpha, int64_t count, float* y);
  void (*multiply)(const float* x1, const float* x2, int64_t count, float* y);
  void (*divide)(const float* x1, const float* x2, int64_t count, float* y);
  void (*silu)(const float* x, int64_t count, float* y);
  float (*sum_of_squares)(const float* x, int64_t count);
  // y = x * factor * gamma
  void (*scale)(const float* x, float factor, const float* gamma, int64_t count, float* y);
  // sums[rows][kMatmulColumns] += x[rows][count] @ panel[count][kMatmulColumns]; rows of x are `stride` apart.
  void (*add_products)(const float* x, int64_t stride, const float* panel, int64_t rows, int64_t count, float* sums);
};
const FloatKernel& float_kernel();

int32_t check_float(const char* op, const char* name, const anynpu_tensor& tensor);
// Repeats x along axes of size 1 until it has the first `axes` axes of `like`; false where they do not fit.
bool expand(anynpu_tensor& x, const anynpu_tensor& like, int axes);

}  // namespace anynpu
