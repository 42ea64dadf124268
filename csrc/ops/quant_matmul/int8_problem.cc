// SPDX-License-Identifier: Apache-2.0
#include "ops/quant_matmul/int8_problem.h"

#include "ops/quant_matmul/int8_kernel.h"

namespace anynpu {

void store_int8_row(const Int8Problem& problem, int64_t row, int32_t compensation, const int32_t* sums, int64_t column,
                    int64_t columns) {
  const auto at = [&](auto* of_columns) { return of_columns == nullptr ? nullptr : of_columns + column; };
  const int64_t bytes = dtype_bits(problem.y_dtype) / 8;
  const float* row_scale = problem.row_scale == nullptr
                               ? nullptr
                               : problem.row_scale + row % problem.row_scale_count * problem.row_scale_stride;
  int8_kernel(problem.rows)
      .store({sums, compensation, columns, problem.y_dtype,
              static_cast<uint8_t*>(problem.y) + (row * problem.n + column) * bytes, at(problem.scale),
              at(problem.bias), at(problem.float_bias), at(problem.offset), row_scale});
}

}  // namespace anynpu
