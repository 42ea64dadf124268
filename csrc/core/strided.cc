// SPDX-License-Identifier: Apache-2.0
#include "core/strided.h"

#include <algorithm>
#include <cstring>

namespace anynpu {
namespace {

// Calls fn(offset, stride, done, run) for each stretch of the range that lies in one row; offsets count elements.
template <typename Function>
void for_each_run(const anynpu_tensor& tensor, int64_t first, int64_t count, const Function& fn) {
  if (tensor.ndim == 0) return fn(int64_t{0}, int64_t{1}, int64_t{0}, count);
  const int last = tensor.ndim - 1;
  int64_t index[ANYNPU_MAX_DIMS];
  int64_t offset = 0;
  for (int axis = last; axis >= 0; --axis) {
    index[axis] = first % tensor.shape[axis];
    first /= tensor.shape[axis];
    offset += index[axis] * tensor.strides[axis];
  }
  for (int64_t done = 0; done < count;) {
    const int64_t run = std::min(count - done, tensor.shape[last] - index[last]);
    fn(offset, tensor.strides[last], done, run);
    done += run;
    offset += run * tensor.strides[last];
    index[last] += run;
    for (int axis = last; axis > 0 && index[axis] == tensor.shape[axis]; --axis) {
      offset += tensor.strides[axis - 1] - index[axis] * tensor.strides[axis];
      index[axis] = 0;
      ++index[axis - 1];
    }
  }
}

template <typename T>
void gather_as(const anynpu_tensor& tensor, int64_t first, int64_t count, void* to) {
  for_each_run(tensor, first, count, [&](int64_t offset, int64_t stride, int64_t done, int64_t run) {
    const T* source = static_cast<const T*>(tensor.data) + offset;
    T* target = static_cast<T*>(to) + done;
    if (stride == 1) {
      std::memcpy(target, source, run * sizeof(T));
    } else {
      for (int64_t i = 0; i < run; ++i) target[i] = source[i * stride];
    }
  });
}

template <typename T>
void scatter_as(const void* from, const anynpu_tensor& tensor, int64_t first, int64_t count) {
  for_each_run(tensor, first, count, [&](int64_t offset, int64_t stride, int64_t done, int64_t run) {
    const T* source = static_cast<const T*>(from) + done;
    T* target = static_cast<T*>(tensor.data) + offset;
    if (stride == 1) {
      std::memcpy(target, source, run * sizeof(T));
    } else {
      for (int64_t i = 0; i < run; ++i) target[i * stride] = source[i];
    }
  });
}

int64_t step(const anynpu_tensor& tensor, int axis) {
  return tensor.strides[axis] < 0 ? -tensor.strides[axis] : tensor.strides[axis];
}

// Whether some axis steps no further than all axes of smaller steps reach together.
bool overlaps_itself(const anynpu_tensor& tensor) {
  for (int axis = 0; axis < tensor.ndim; ++axis) {
    int64_t reach = 0;
    for (int other = 0; other < tensor.ndim; ++other) {
      const bool smaller =
          step(tensor, other) < step(tensor, axis) || (step(tensor, other) == step(tensor, axis) && other < axis);
      if (smaller) reach += step(tensor, other) * (tensor.shape[other] - 1);
    }
    if (tensor.shape[axis] > 1 && step(tensor, axis) <= reach) return true;
  }
  return false;
}

}  // namespace

int32_t check_strides(const char* op, const char* name, const anynpu_tensor& tensor, Access access) {
  if (element_count(tensor) == 0) return ANYNPU_OK;
  int64_t reach = 0;
  for (int axis = 0; axis < tensor.ndim; ++axis) {
    int64_t span = 0;
    if (tensor.strides[axis] == INT64_MIN ||
        __builtin_mul_overflow(step(tensor, axis), tensor.shape[axis] - 1, &span) ||
        __builtin_add_overflow(reach, span, &reach) || reach > INT64_MAX / 64) {
      return fail(ANYNPU_BAD_SHAPE, "%s: strides of %s are too large, got %lld for axis %d of shape %s", op, name,
                  wide(tensor.strides[axis]), axis, shape_text(tensor));
    }
  }
  if (access == Access::write && overlaps_itself(tensor)) {
    return fail(ANYNPU_BAD_SHAPE, "%s: %s must not overlap itself, shape %s with these strides does", op, name,
                shape_text(tensor));
  }
  return ANYNPU_OK;
}

int32_t check_view(const char* op, const char* name, const anynpu_tensor& tensor, std::initializer_list<int32_t> dtypes,
                   Access access) {
  ANYNPU_TRY(check_required(op, name, tensor));
  ANYNPU_TRY(check_dtype(op, name, tensor, dtypes));
  if (tensor.format != ANYNPU_ND) {
    return fail(ANYNPU_BAD_SHAPE, "%s: %s must be ND, got format %d", op, name, tensor.format);
  }
  return check_strides(op, name, tensor, access);
}

void gather(const anynpu_tensor& from, int64_t first, int64_t count, void* to) {
  switch (dtype_bits(from.dtype)) {
    case 8: return gather_as<uint8_t>(from, first, count, to);
    case 16: return gather_as<uint16_t>(from, first, count, to);
    case 32: return gather_as<uint32_t>(from, first, count, to);
    case 64: return gather_as<uint64_t>(from, first, count, to);
  }
}

void scatter(const void* from, const anynpu_tensor& to, int64_t first, int64_t count) {
  switch (dtype_bits(to.dtype)) {
    case 8: return scatter_as<uint8_t>(from, to, first, count);
    case 16: return scatter_as<uint16_t>(from, to, first, count);
    case 32: return scatter_as<uint32_t>(from, to, first, count);
    case 64: return scatter_as<uint64_t>(from, to, first, count);
  }
}

}  // namespace anynpu
