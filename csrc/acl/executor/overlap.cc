// SPDX-License-Identifier: Apache-2.0
#include "acl/executor/overlap.h"

#include "core/tensor.h"

namespace anynpu::acl {
namespace {

// The bytes that a view covers beside steps of `pitch`; 0 when it has other steps too.
uint64_t covered(const anynpu_tensor& tensor, uint64_t pitch) {
  const uint64_t size = dtype_bits(tensor.dtype) / 8;  // 0: int4
  uint64_t last = 0;                                   // where the last element begins
  for (int axis = 0; axis < tensor.ndim; ++axis) {
    const uint64_t step = static_cast<uint64_t>(tensor.strides[axis]) * size;
    if (tensor.shape[axis] > 1 && step % pitch != 0) last += static_cast<uint64_t>(tensor.shape[axis] - 1) * step;
  }
  return tensor.format == ANYNPU_ND && size > 0 && last + size <= pitch ? last + size : 0;
}

}  // namespace

bool same_view(const anynpu_tensor& a, const anynpu_tensor& b) {
  return a.data == b.data && a.format == b.format && dtype_bits(a.dtype) == dtype_bits(b.dtype) && same_shape(a, b) &&
         same_strides(a, b);
}

bool interleaved(const anynpu_tensor& a, const anynpu_tensor& b) {
  const uint64_t size = dtype_bits(a.dtype) / 8;  // 0: int4
  for (int axis = 0; axis < a.ndim; ++axis) {
    const uint64_t pitch = static_cast<uint64_t>(a.strides[axis]) * size;
    if (a.shape[axis] <= 1 || pitch == 0) continue;
    const uint64_t of_a = covered(a, pitch), of_b = covered(b, pitch);
    const auto at_a = reinterpret_cast<uintptr_t>(a.data), at_b = reinterpret_cast<uintptr_t>(b.data);
    const uint64_t apart = at_b >= at_a ? (at_b - at_a) % pitch : (pitch - (at_a - at_b) % pitch) % pitch;
    if (of_a != 0 && of_b != 0 && of_a <= apart && apart + of_b <= pitch) return true;
  }
  return false;
}

}  // namespace anynpu::acl
