// SPDX-License-Identifier: Apache-2.0
// Questions that every operator asks of an anynpu_tensor.
#pragma once

#include <initializer_list>

#include "core/status.h"

namespace anynpu {

#pragma GCC visibility push(default)  // csrc/acl asks the same questions from its own libraries

inline bool present(const anynpu_tensor& tensor) { return tensor.format != 0; }
const char* dtype_name(int32_t dtype);
inline bool is_float(int32_t dtype) {
  return dtype == ANYNPU_FLOAT32 || dtype == ANYNPU_FLOAT16 || dtype == ANYNPU_BFLOAT16;
}
// Bits of one element; 0 for an unknown dtype.
int dtype_bits(int32_t dtype);
bool is_contiguous(const anynpu_tensor& tensor);
bool has_shape(const anynpu_tensor& tensor, std::initializer_list<int64_t> shape);
bool same_shape(const anynpu_tensor& a, const anynpu_tensor& b);
// Of tensors of one shape: whether they have the same strides where these matter.
bool same_strides(const anynpu_tensor& a, const anynpu_tensor& b);
// Sets the strides to those of a contiguous tensor of this shape.
void make_contiguous(anynpu_tensor& tensor);
// Elements of the view, or -1 when the product overflows or an axis is negative.
int64_t element_count(const anynpu_tensor& tensor);
// "(2, 3)" in a thread-local ring of buffers, so that several may stand in one message.
const char* shape_text(const anynpu_tensor& tensor);
// Elements from the data of `tensor` to row `row`, counted through all axes but the last.
int64_t row_elements(const anynpu_tensor& tensor, int64_t row);
// Inner block width of FRACTAL_NZ storage: nz_c0 or its default, 32 bytes of elements.
int64_t nz_c0(const anynpu_tensor& tensor);

// Rank within [0, ANYNPU_MAX_DIMS], no negative axis, no overflow of the count, known dtype and format.
int32_t check_tensor(const char* op, const char* name, const anynpu_tensor& tensor);
// As check_tensor, and present.
int32_t check_required(const char* op, const char* name, const anynpu_tensor& tensor);
// A present tensor has one of these dtypes.
int32_t check_dtype(const char* op, const char* name, const anynpu_tensor& tensor,
                    std::initializer_list<int32_t> dtypes);
int32_t check_shape(const char* op, const char* name, const anynpu_tensor& tensor, const anynpu_tensor& expected);
int32_t check_contiguous(const char* op, const char* name, const anynpu_tensor& tensor);
// ND and contiguous.
int32_t check_plain(const char* op, const char* name, const anynpu_tensor& tensor);
// A present tensor with elements has data.
int32_t check_data(const char* op, const char* name, const anynpu_tensor& tensor);

#pragma GCC visibility pop

}  // namespace anynpu
