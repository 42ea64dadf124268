// SPDX-License-Identifier: Apache-2.0
// The float dtypes of tensors, for kernels that are templates of them. Included after the vec header of a kernel unit.
#pragma once

#include "anynpu.h"

namespace anynpu {
namespace {

struct Float32 {
  typedef float Stored;
  static Vec load_vector(const float* from) { return load(from); }
  static void store_vector(float* to, Vec value) { store(to, value); }
};

struct Float16 {
  typedef uint16_t Stored;
  static Vec load_vector(const uint16_t* from) { return load_half(from); }
  static void store_vector(uint16_t* to, Vec value) { store_half(to, value); }
};

struct Bfloat16 {
  typedef uint16_t Stored;
  static Vec load_vector(const uint16_t* from) { return load_bf16(from); }
  static void store_vector(uint16_t* to, Vec value) { store_bf16(to, value); }
};

// Of a vector only the first `count` values.
template <typename Type>
inline Vec load_first(const typename Type::Stored* from, int64_t count) {
  typename Type::Stored part[kLanes] = {};
  memcpy(part, from, static_cast<size_t>(count) * sizeof(part[0]));
  return Type::load_vector(part);
}

template <typename Type>
inline void store_first(typename Type::Stored* to, Vec value, int64_t count) {
  typename Type::Stored part[kLanes];
  Type::store_vector(part, value);
  memcpy(to, part, static_cast<size_t>(count) * sizeof(part[0]));
}

// Calls fn(Type{}) with the type of `dtype`.
template <typename Function>
inline __attribute__((always_inline)) void with_float_type(int32_t dtype, const Function& fn) {
  if (dtype == ANYNPU_FLOAT32) return fn(Float32{});
  if (dtype == ANYNPU_FLOAT16) return fn(Float16{});
  fn(Bfloat16{});
}

}  // namespace
}  // namespace anynpu
