// SPDX-License-Identifier: Apache-2.0
// Views of any strides, for operators that work on contiguous tiles.
#pragma once

#include <initializer_list>

#include "core/tensor.h"

namespace anynpu {

enum class Access { read, write };

// The offsets of the view fit in 63 bits; for writing, no two elements share a place.
int32_t check_strides(const char* op, const char* name, const anynpu_tensor& tensor, Access access);
// Present, ND, of one of these dtypes, and fit to be read, or written, with its strides.
int32_t check_view(const char* op, const char* name, const anynpu_tensor& tensor, std::initializer_list<int32_t> dtypes,
                   Access access = Access::read);
// Copies elements [first, first + count), in row-major order of the view, to contiguous memory and back.
// Elements are whole bytes: INT4 is not for these.
void gather(const anynpu_tensor& from, int64_t first, int64_t count, void* to);
void scatter(const void* from, const anynpu_tensor& to, int64_t first, int64_t count);

}  // namespace anynpu
