// SPDX-License-Identifier: Apache-2.0
#include "ops/quant_matmul/columns.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "core/quant_param.h"
#include "gemm/gemm.h"

namespace anynpu {
namespace {

// Stride of the last axis; 0 repeats a single value.
int64_t column_stride(const anynpu_tensor& tensor) {
  return tensor.shape[tensor.ndim - 1] == 1 ? 0 : tensor.strides[tensor.ndim - 1];
}

void load_floats(const anynpu_tensor& tensor, int64_t first, int64_t n, float* to) {
  const int64_t stride = column_stride(tensor);
  const auto* from = static_cast<const uint8_t*>(tensor.data) + first * (dtype_bits(tensor.dtype) / 8);
  if (stride != 0) return gemm_kernel().load_floats(from, tensor.dtype, stride, n, to);
  gemm_kernel().load_floats(from, tensor.dtype, 1, 1, to);
  std::fill(to + 1, to + n, to[0]);
}

float cut_to_19_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  bits &= 0xffffe000u;
  std::memcpy(&value, &bits, sizeof(bits));
  return value;
}

}  // namespace

bool Columns::allocate(int64_t n) {
  n_ = n;
  scale_.reset(new (std::nothrow) float[n]);
  offset_.reset(new (std::nothrow) float[n]);
  float_bias_.reset(new (std::nothrow) float[n]);
  bias_.reset(new (std::nothrow) int32_t[n]);
  return scale_ && offset_ && float_bias_ && bias_;
}

void Columns::load_scale(const anynpu_tensor& scale, bool with_offset, bool bits_19) {
  if (scale.dtype == ANYNPU_INT64 || scale.dtype == ANYNPU_UINT64) {
    const int64_t stride = column_stride(scale);
    for (int64_t i = 0; i < n_; ++i) {
      const QuantParam param = decode_quant_param(static_cast<const int64_t*>(scale.data)[i * stride]);
      scale_[i] = param.scale;
      offset_[i] = param.offset;
    }
    has_offset_ =
        with_offset && std::any_of(offset_.get(), offset_.get() + n_, [](float value) { return value != 0.0f; });
  } else {
    load_floats(scale, 0, n_, scale_.get());
  }
  if (bits_19) std::transform(scale_.get(), scale_.get() + n_, scale_.get(), cut_to_19_bits);
}

void Columns::load_offset(const anynpu_tensor& offset) {
  load_floats(offset, 0, n_, offset_.get());
  has_offset_ = true;
}

int32_t Columns::load_bias(const char* op, const anynpu_tensor& bias, int64_t first, int64_t k) {
  has_bias_ = bias.dtype == ANYNPU_INT32;
  has_float_bias_ = !has_bias_;
  if (has_float_bias_) {
    load_floats(bias, first, n_, float_bias_.get());
    return ANYNPU_OK;
  }
  const int64_t stride = column_stride(bias), most = INT32_MAX - int64_t{128} * 128 * k;
  for (int64_t i = 0; i < n_; ++i) {
    bias_[i] = static_cast<const int32_t*>(bias.data)[first + i * stride];
    if (bias_[i] > most || bias_[i] < -most) {
      return fail(ANYNPU_BAD_VALUE,
                  "%s: |bias| must be at most 2^31 - 1 - 2^14 * K = %lld so that int32 sums are exact, got %d at %lld",
                  op, wide(most), bias_[i], wide(i));
    }
  }
  return ANYNPU_OK;
}

void Columns::describe(Int8Problem* problem) const {
  problem->scale = scale_.get();
  if (has_bias_) problem->bias = bias_.get();
  if (has_float_bias_) problem->float_bias = float_bias_.get();
  if (has_offset_) problem->offset = offset_.get();
}

}  // namespace anynpu
