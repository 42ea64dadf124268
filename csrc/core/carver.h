// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "core/integer.h"
#include "core/scratch.h"

namespace anynpu {

// Hands out parts of one piece of memory; with none it only counts.
class Carver {
 public:
  explicit Carver(uintptr_t memory) : memory_(memory) {}
  template <typename T>
  T* take(int64_t count) {
    T* part = memory_ == 0 ? nullptr : reinterpret_cast<T*>(memory_ + used_);
    used_ += round_up(count * static_cast<int64_t>(sizeof(T)), kScratchAlignment);
    return part;
  }
  int64_t used() const { return used_; }

 private:
  uintptr_t memory_;
  int64_t used_ = 0;
};

}  // namespace anynpu
