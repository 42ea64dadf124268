// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "core/cpu.h"

namespace anynpu {

// A vector of parameters, [columns], or a matrix of them, [heads, columns]; strides count elements.
struct RopeParameter {
  const void* data;
  int64_t head_stride;
  int64_t stride;
};

// What all tokens of a call share.
struct RopeLayer {
  int64_t q_heads, kv_heads, head_size;
  int64_t x_stride, cos_stride, sin_stride;
  RopeParameter weight_scale, bias, scale_k, scale_v, offset_k, offset_v;
};

// One token. k and v are null unless wanted; k_codes and v_codes are null when the token has no place in the cache.
struct RopeToken {
  const void* x;
  const void* next_x;  // of the token after it, fetched meanwhile
  const void* cos;
  const void* sin;
  float activation_scale;
  void* q;
  void* k;
  void* v;
  int8_t* k_codes;
  int8_t* v_codes;
};

using RopeFunction = void (*)(const RopeLayer& layer, const RopeToken& token);

enum RopeFloat { kRopeFloat32, kRopeFloat16, kRopeBFloat16, kRopeFloats };  // dtypes of cos, sin and the outputs
// For x: the dtype of cos, or int32 with the bias that comes with it.
enum RopeInput {
  kRopeSame,
  kRopeNoBias,
  kRopeBiasInt32,
  kRopeBiasFloat32,
  kRopeBiasFloat16,
  kRopeBiasBFloat16,
  kRopeInputs
};

struct RopeKernel {
  Isa isa;
  int32_t lanes;
  // The last index: whether x, cos, sin and all parameters have stride 1 and half a head fills a vector of `lanes`.
  RopeFunction token[kRopeInputs][kRopeFloats][2];
};

}  // namespace anynpu
