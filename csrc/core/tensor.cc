// SPDX-License-Identifier: Apache-2.0
#include "core/tensor.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

namespace anynpu {
namespace {

struct DtypeInfo {
  int32_t dtype;
  int bits;
  const char* name;
};

constexpr DtypeInfo kDtypes[] = {
    {ANYNPU_FLOAT32, 32, "float32"},   {ANYNPU_FLOAT16, 16, "float16"}, {ANYNPU_INT8, 8, "int8"},
    {ANYNPU_INT32, 32, "int32"},       {ANYNPU_UINT8, 8, "uint8"},      {ANYNPU_INT16, 16, "int16"},
    {ANYNPU_UINT16, 16, "uint16"},     {ANYNPU_UINT32, 32, "uint32"},   {ANYNPU_INT64, 64, "int64"},
    {ANYNPU_UINT64, 64, "uint64"},     {ANYNPU_FLOAT64, 64, "float64"}, {ANYNPU_BOOL, 8, "bool"},
    {ANYNPU_BFLOAT16, 16, "bfloat16"}, {ANYNPU_INT4, 4, "int4"},
};

const DtypeInfo* find(int32_t dtype) {
  for (const DtypeInfo& info : kDtypes) {
    if (info.dtype == dtype) return &info;
  }
  return nullptr;
}

}  // namespace

const char* dtype_name(int32_t dtype) {
  const DtypeInfo* info = find(dtype);
  return info == nullptr ? "unknown dtype" : info->name;
}

int dtype_bits(int32_t dtype) {
  const DtypeInfo* info = find(dtype);
  return info == nullptr ? 0 : info->bits;
}

bool is_contiguous(const anynpu_tensor& tensor) {
  if (element_count(tensor) == 0) return true;
  int64_t expected = 1;
  for (int axis = tensor.ndim - 1; axis >= 0; --axis) {
    if (tensor.shape[axis] != 1 && tensor.strides[axis] != expected) return false;
    expected *= tensor.shape[axis];
  }
  return true;
}

bool has_shape(const anynpu_tensor& tensor, std::initializer_list<int64_t> shape) {
  return tensor.ndim == static_cast<int>(shape.size()) && std::equal(shape.begin(), shape.end(), tensor.shape);
}

bool same_shape(const anynpu_tensor& a, const anynpu_tensor& b) {
  return a.ndim == b.ndim && std::equal(a.shape, a.shape + a.ndim, b.shape);
}

bool same_strides(const anynpu_tensor& a, const anynpu_tensor& b) {
  for (int axis = 0; axis < a.ndim; ++axis) {
    if (a.shape[axis] > 1 && a.strides[axis] != b.strides[axis]) return false;
  }
  return true;
}

void make_contiguous(anynpu_tensor& tensor) {
  int64_t stride = 1;
  for (int axis = tensor.ndim - 1; axis >= 0; --axis) {
    tensor.strides[axis] = stride;
    if (__builtin_mul_overflow(stride, tensor.shape[axis], &stride)) stride = 0;  // of a tensor without elements
  }
}

int64_t element_count(const anynpu_tensor& tensor) {
  int64_t count = 1;
  for (int axis = 0; axis < tensor.ndim; ++axis) {
    if (tensor.shape[axis] < 0 || __builtin_mul_overflow(count, tensor.shape[axis], &count)) return -1;
  }
  return count;
}

const char* shape_text(const anynpu_tensor& tensor) {
  thread_local char ring[4][192];
  thread_local int next = 0;
  char* text = ring[next++ % 4];
  int used = std::snprintf(text, sizeof(ring[0]), "(");
  for (int axis = 0; axis < tensor.ndim && axis < ANYNPU_MAX_DIMS; ++axis) {
    used += std::snprintf(text + used, sizeof(ring[0]) - used, axis == 0 ? "%lld" : ", %lld", wide(tensor.shape[axis]));
  }
  std::snprintf(text + used, sizeof(ring[0]) - used, tensor.ndim == 1 ? ",)" : ")");
  return text;
}

int64_t nz_c0(const anynpu_tensor& tensor) {
  if (tensor.nz_c0 > 0) return tensor.nz_c0;
  const int bits = dtype_bits(tensor.dtype);
  return bits == 0 ? 0 : 256 / bits;
}

int32_t check_tensor(const char* op, const char* name, const anynpu_tensor& tensor) {
  if (!present(tensor)) return ANYNPU_OK;
  if (dtype_bits(tensor.dtype) == 0) {
    return fail(ANYNPU_BAD_DTYPE, "%s: %s has an unknown dtype code %d", op, name, tensor.dtype);
  }
  if (tensor.format != ANYNPU_ND && tensor.format != ANYNPU_FRACTAL_NZ) {
    return fail(ANYNPU_BAD_SHAPE, "%s: format of %s must be ND (2) or FRACTAL_NZ (29), got %d", op, name,
                tensor.format);
  }
  if (tensor.ndim < 0 || tensor.ndim > ANYNPU_MAX_DIMS) {
    return fail(ANYNPU_BAD_SHAPE, "%s: %s must have 0 to %d axes, got %d", op, name, ANYNPU_MAX_DIMS, tensor.ndim);
  }
  const int64_t count = element_count(tensor);
  int64_t bits = 0;
  if (count < 0 || __builtin_mul_overflow(count, int64_t{dtype_bits(tensor.dtype)}, &bits)) {
    return fail(ANYNPU_BAD_SHAPE, "%s: shape of %s is negative or too large: %s", op, name, shape_text(tensor));
  }
  for (int axis = 0; axis < tensor.ndim; ++axis) {  // also of an axis of size 1, where no element is that far away
    if (__builtin_mul_overflow(tensor.strides[axis], int64_t{dtype_bits(tensor.dtype)}, &bits)) {
      return fail(ANYNPU_BAD_SHAPE, "%s: a stride of %s is too large: %lld", op, name, wide(tensor.strides[axis]));
    }
  }
  return ANYNPU_OK;
}

int32_t check_required(const char* op, const char* name, const anynpu_tensor& tensor) {
  if (!present(tensor)) return fail(ANYNPU_NULL_ARG, "%s: %s is required, got none", op, name);
  return check_tensor(op, name, tensor);
}

int32_t check_dtype(const char* op, const char* name, const anynpu_tensor& tensor,
                    std::initializer_list<int32_t> dtypes) {
  if (!present(tensor) || std::find(dtypes.begin(), dtypes.end(), tensor.dtype) != dtypes.end()) return ANYNPU_OK;
  char expected[96] = "";
  for (const int32_t dtype : dtypes) {
    if (expected[0] != '\0') std::strcat(expected, " or ");
    std::strcat(expected, dtype_name(dtype));
  }
  return fail(ANYNPU_BAD_DTYPE, "%s: %s must be %s, got %s", op, name, expected, dtype_name(tensor.dtype));
}

int32_t check_shape(const char* op, const char* name, const anynpu_tensor& tensor, const anynpu_tensor& expected) {
  if (same_shape(tensor, expected)) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE, "%s: %s must have shape %s, got %s", op, name, shape_text(expected),
              shape_text(tensor));
}

int32_t check_contiguous(const char* op, const char* name, const anynpu_tensor& tensor) {
  if (is_contiguous(tensor)) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE, "%s: %s should be contiguous", op, name);
}

int32_t check_plain(const char* op, const char* name, const anynpu_tensor& tensor) {
  if (tensor.format == ANYNPU_ND && is_contiguous(tensor)) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE, "%s: %s must be ND and contiguous", op, name);
}

int32_t check_data(const char* op, const char* name, const anynpu_tensor& tensor) {
  if (!present(tensor) || tensor.data != nullptr || element_count(tensor) == 0) return ANYNPU_OK;
  return fail(ANYNPU_NULL_ARG, "%s: data of %s is a null pointer", op, name);
}

int64_t row_elements(const anynpu_tensor& tensor, int64_t row) {
  int64_t elements = 0;
  for (int axis = tensor.ndim - 2; axis >= 0; --axis) {
    elements += row % tensor.shape[axis] * tensor.strides[axis];
    row /= tensor.shape[axis];
  }
  return elements;
}

}  // namespace anynpu
