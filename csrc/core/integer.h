// SPDX-License-Identifier: Apache-2.0
// Arithmetic of sizes: of values that are not negative, far from the largest ones.
#pragma once

#include <cstdint>

namespace anynpu {

inline int64_t ceil_divide(int64_t value, int64_t by) { return (value + by - 1) / by; }
inline int64_t round_up(int64_t value, int64_t multiple) { return ceil_divide(value, multiple) * multiple; }

}  // namespace anynpu
