// SPDX-License-Identifier: Apache-2.0
// What the handles of aclnn/acl_meta.h stand for.
#pragma once

#include <array>
#include <vector>

#include "acl/runtime/handles.h"
#include "aclnn/acl_meta.h"
#include "anynpu.h"

namespace anynpu::acl {

struct Tensor : Object {
  int32_t ndim = 0, storage_ndim = 0;
  std::array<int64_t, ANYNPU_MAX_DIMS> shape{}, strides{}, storage{};
  aclDataType dtype = ACL_DT_UNDEFINED;
  aclFormat format = ACL_FORMAT_UNDEFINED;
  int64_t offset = 0;  // elements
  void* data = nullptr;
};
using TensorPtr = std::shared_ptr<Tensor>;

template <typename T>
struct Array : Object {
  std::vector<T> values;
};
using IntArray = Array<int64_t>;
struct Scalar : Object {
  aclDataType dtype = ACL_DT_UNDEFINED;
  alignas(8) std::array<unsigned char, 16> bytes{};  // read as its dtype
};
// Lists hold the handles of their members.
using Handles = Array<const void*>;

HandleTable<Tensor>& tensors();
HandleTable<IntArray>& int_arrays();
HandleTable<Scalar>& scalars();
HandleTable<Handles>& tensor_lists();

// The bytes of memory that the view touches, from `data` on: [begin, end).
struct Span {
  int64_t begin = 0, end = 0;
  bool empty() const { return begin == end; }
};

// base + bytes; null stays null. In integers, since a made-up base may wrap around.
inline void* advanced(void* base, int64_t bytes) {
  return base == nullptr ? nullptr
                         : reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(base) + static_cast<uintptr_t>(bytes));
}

// The kernels' description of the tensor, with data at the first element of the view; `call` and `name` are for the
// sentence.
int32_t describe(const char* call, const char* name, const Tensor& tensor, bool written, anynpu_tensor* description,
                 Span* span);

// The same tensor with its memory in FRACTAL_NZ; it has at least two axes, and two fewer than the most.
Tensor in_blocks(const Tensor& tensor);

// Checking mode: findings about the address of a tensor.
void inspect(const char* call, const Tensor& tensor);

}  // namespace anynpu::acl
