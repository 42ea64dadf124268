// SPDX-License-Identifier: Apache-2.0
// Device memory: host memory with a register of what was allocated, so that addresses can be judged before use.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "acl/runtime/check.h"

namespace anynpu::acl {

// Freed when the last holder lets go: work in flight keeps what it uses alive past aclrtFree.
struct Allocation {
  void* base = nullptr;
  size_t requested = 0;  // what the program asked for
  size_t size = 0;       // what it got
  bool on_host = false;  // from aclrtMallocHost
  uint64_t number = 0;   // in the order of allocation
  check::Site created;

  Allocation() = default;
  Allocation(const Allocation&) = delete;
  Allocation& operator=(const Allocation&) = delete;
  ~Allocation();
  bool holds(const void* begin, size_t bytes, size_t limit) const {
    const size_t at = reinterpret_cast<uintptr_t>(begin) - reinterpret_cast<uintptr_t>(base);
    return at <= limit && bytes <= limit - at;
  }
};
using AllocationPtr = std::shared_ptr<const Allocation>;

// The live allocation that contains the address, or null.
ACL_FUNC_VISIBILITY AllocationPtr allocation_at(const void* address);

// Finds the live device allocation around [begin, begin + bytes), or keeps a sentence about `what` and returns
// `status`.
ACL_FUNC_VISIBILITY int32_t device_range(const char* call, const std::string& what, const void* begin, size_t bytes,
                                         int32_t status, AllocationPtr* allocation);

// Checking mode: findings about a device address that is none, and about the tolerated use of the rounded-up part.
ACL_FUNC_VISIBILITY void inspect_range(const char* call, const std::string& what, const void* begin, size_t bytes);
// Checking mode: a finding when the address lies in device memory that was freed.
ACL_FUNC_VISIBILITY bool inspect_freed(const char* call, const std::string& what, const void* begin);

}  // namespace anynpu::acl
