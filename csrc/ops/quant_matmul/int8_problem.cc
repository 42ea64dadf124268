// SPDX-License-Identifier: Apache-2.0
#include "ops/quant_matmul/int8_problem.h"

#include "ops/quant_matmul/int8_kernel.h"

namespace anynpu {

void store_int8_sums(const Int8Problem& problem, const Int8Sums& part) {
  const auto at = [&](auto* of_columns) { return of_columns == nullptr ? nullptr : of_columns + part.column; };
  const Int8Kernel& kernel = int8_kernel(problem.rows);
  const int64_t bytes = dtype_bits(problem.y_dtype) / 8;
  Int8Output out = {nullptr,
                    0,
                    part.columns,
                    problem.y_dtype,
                    nullptr,
                    at(problem.scale),
                    at(problem.bias),
                    at(problem.float_bias),
                    at(problem.offset),
                    nullptr};
  for (int64_t i = 0; i < part.rows; ++i) {
    const int64_t row = part.row + i;
    out.sums = part.sums + i * part.stride;
    if (part.compensation != nullptr) out.compensation = part.compensation[i];
    out.y = static_cast<uint8_t*>(problem.y) + (row * problem.n + part.column) * bytes;
    if (problem.row_scale != nullptr) {
      out.row_scale = problem.row_scale + row % problem.row_scale_count * problem.row_scale_stride;
    }
    kernel.store(out);
  }
}

}  // namespace anynpu
