// SPDX-License-Identifier: Apache-2.0
// How the weight tensors of the matrix products lie in memory.
#pragma once

#include "core/tensor.h"
#include "gemm/gemm.h"

namespace anynpu {

// Sizes above this are refused, so that no product of two of them with a small factor overflows.
constexpr int64_t kLargestAxis = int64_t{1} << 40;

struct WeightView {
  WeightSource source;                   // data of the first matrix
  int64_t batch_bytes[ANYNPU_MAX_DIMS];  // bytes between matrices, per leading axis
};

// Finds K, N and the layout of an int8, int4 or packed int32 weight. A weight is transposed when its strides say so:
// packed int32 of shape (K / 8, N) with strides (1, K / 8) packs along K. Where an axis of size 1 lets the strides say
// both, expected_k (that of x, or -1) decides, and else the plain form is taken. `name` is that of the argument.
int32_t view_weight(const char* op, const char* name, const anynpu_tensor& weight, int64_t expected_k,
                    WeightView* view);

// What the product of panel `panel` of the current part and of its block `inside` k into it fetches ahead, so that
// `next`, the part after it, is in the caches by the time it is unpacked.
Ahead look_ahead(const WeightSource& weight, WeightPart next, int64_t panel, int64_t inside);

// Prepacked weights, formats w4p32 and w8p32 of docs/formats.md.
constexpr int64_t kPackedHeaderBytes = 64;
// Size of the whole blob.
int64_t packed32_bytes(int32_t bits, int64_t k, int64_t n);
void write_packed32_header(int32_t bits, int64_t k, int64_t n, uint8_t* blob);
// Reads and checks the header of a blob of `bytes` bytes.
int32_t view_packed32(const char* op, const char* name, const uint8_t* blob, int64_t bytes, WeightSource* source);

}  // namespace anynpu
