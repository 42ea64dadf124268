// SPDX-License-Identifier: Apache-2.0
// Numbers that are known only at run time as constants, for kernels that are templates of them.
#pragma once

namespace anynpu {
namespace {

template <int kCount>
struct Count {
  static constexpr int value = kCount;
};

// Calls fn(Count<n>{}) for n = count, at least 1, or kMost where that is less.
template <int kMost, typename Function>
inline __attribute__((always_inline)) void with_count(int count, const Function& fn) {
  if constexpr (kMost > 1) {
    if (count < kMost) return with_count<kMost - 1>(count, fn);
  }
  fn(Count<kMost>{});
}

}  // namespace
}  // namespace anynpu
