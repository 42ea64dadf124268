// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "anynpu.h"

namespace anynpu {

// Stores the sentence for anynpu_last_error() and returns `status`, so that checks read `return fail(...)`.
// Visible, because the compositions of operators in csrc/ops belong to the library of the C front end.
int32_t fail(anynpu_status status, const char* format, ...)
    __attribute__((format(printf, 2, 3), visibility("default")));

// For %lld.
inline long long wide(int64_t value) { return value; }

}  // namespace anynpu

// Leaves the calling function with the status of `expression` unless it is ANYNPU_OK.
#define ANYNPU_TRY(expression)                                    \
  do {                                                            \
    const int32_t anynpu_try_status = (expression);               \
    if (anynpu_try_status != ANYNPU_OK) return anynpu_try_status; \
  } while (0)
