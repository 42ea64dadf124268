// SPDX-License-Identifier: Apache-2.0
#include "ops/quant_matmul/int4_gemm.h"

#include <cstring>

namespace anynpu {
namespace {

constexpr float kOne = 1.0f;

// The sums are integers, in place of which come int32.
class ColumnScaled final : public RowSums {
 public:
  explicit ColumnScaled(const Int8Problem& problem) : problem_(problem) {}
  void store(int64_t row, int64_t column, int64_t columns, float* sums) const override {
    for (int64_t i = 0; i < columns; ++i) {
      const auto integer = static_cast<int32_t>(sums[i]);
      std::memcpy(sums + i, &integer, sizeof(integer));
    }
    store_int8_sums(problem_, {reinterpret_cast<const int32_t*>(sums), columns, nullptr, row, 1, column, columns});
  }

 private:
  const Int8Problem& problem_;
};

class GroupScaled final : public RowSums {
 public:
  explicit GroupScaled(const Int8Problem& problem) : problem_(problem) {}
  void store(int64_t row, int64_t column, int64_t columns, float* sums) const override {
    const int64_t token = problem_.row_scale == nullptr ? 0 : row % problem_.row_scale_count;
    const float factor = problem_.row_scale == nullptr ? 1.0f : problem_.row_scale[token * problem_.row_scale_stride];
    for (int64_t i = 0; problem_.offset != nullptr && i < columns; ++i) sums[i] += problem_.offset[column + i];
    for (int64_t i = 0; i < columns; ++i) sums[i] *= factor;
    RowOutput output = {};
    output.y = static_cast<uint8_t*>(problem_.y) + (row * problem_.n + column) * (dtype_bits(problem_.y_dtype) / 8);
    output.stride = 1;
    output.count = columns;
    output.dtype = problem_.y_dtype;
    if (problem_.float_bias != nullptr) output.bias = problem_.float_bias + column;
    gemm_kernel().store_row(sums, output);
  }

 private:
  const Int8Problem& problem_;
};

}  // namespace

int32_t run_int4_gemm(const char* op, const Int8Problem& problem, const Int4Weight& weight) {
  const ColumnScaled by_column(problem);
  const GroupScaled by_group(problem);
  anynpu_weight_quant_matmul_args args = {};
  args.x = *problem.x_view;
  args.x.data = const_cast<int8_t*>(problem.x);
  args.weight.dtype = weight.source.order == WeightOrder::packed32 ? ANYNPU_UINT8 : ANYNPU_INT4;
  WeightQuantProblem product = {};
  product.args = &args;
  product.m = product.rows = problem.rows;
  product.k = problem.k;
  product.n = problem.n;
  product.weight_count = 1;
  product.group = weight.group == 0 ? problem.k : weight.group;
  product.weight.source = weight.source;
  product.scale = weight.group == 0 ? Channels{&kOne, ANYNPU_FLOAT32, 0, 0} : weight.scale;
  product.sums = weight.group == 0 ? static_cast<const RowSums*>(&by_column) : &by_group;
  return run_weight_quant_matmul(op, product, nullptr, 0);
}

}  // namespace anynpu
