// SPDX-License-Identifier: Apache-2.0
// The values by column of an int8 matrix product, converted once a call.
#pragma once

#include <memory>

#include "core/tensor.h"
#include "ops/quant_matmul/int8_problem.h"

namespace anynpu {

class Columns {
 public:
  bool allocate(int64_t n);
  // One value or n, on the last axis: FLOAT32, BFLOAT16, or 64-bit words (core/quant_param.h), whose offset is taken too
  // when `with_offset`. With `bits_19`, the low bits of a float32 are cut as the hardware does.
  void load_scale(const anynpu_tensor& scale, bool with_offset, bool bits_19);
  void load_offset(const anynpu_tensor& offset);
  // n values, `first` elements after the data. An int32 bias must leave the sums within int32.
  int32_t load_bias(const char* op, const anynpu_tensor& bias, int64_t first, int64_t k);
  void describe(Int8Problem* problem) const;

 private:
  int64_t n_ = 0;
  bool has_offset_ = false, has_bias_ = false, has_float_bias_ = false;
  std::unique_ptr<float[]> scale_, offset_, float_bias_;
  std::unique_ptr<int32_t[]> bias_;
};

}  // namespace anynpu
