// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <new>

namespace anynpu {

// Restores an output on failure, for work in one pass that finds bad input only after earlier parts are written.
class Snapshot {
 public:
  // Nothing is kept of an output that the caller drops on an error.
  Snapshot(void* output, int64_t bytes, bool dropped)
      : output_(output), bytes_(static_cast<size_t>(bytes)), needed_(!dropped) {
    if (!needed_) return;
    copy_.reset(new (std::nothrow) uint8_t[bytes_]);
    if (copy_) std::memcpy(copy_.get(), output_, bytes_);
  }
  bool ok() const { return !needed_ || copy_ != nullptr; }
  void restore() const {
    if (copy_) std::memcpy(output_, copy_.get(), bytes_);
  }

 private:
  void* output_;
  size_t bytes_;
  bool needed_;
  std::unique_ptr<uint8_t[]> copy_;
};

}  // namespace anynpu
