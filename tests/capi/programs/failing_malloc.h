// SPDX-License-Identifier: Apache-2.0
// Of failing_malloc.cc, which not every program is linked with: null in the others.
#pragma once

#include <cstdint>

// The allocation of this number from now on fails, 0 being the next, and those after it too if `all`. Negative: none does.
extern "C" void fail_allocations(int64_t first, bool all) __attribute__((weak));
// Whether the allocation of that number was reached.
extern "C" bool allocations_failed() __attribute__((weak));
