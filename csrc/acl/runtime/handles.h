// SPDX-License-Identifier: Apache-2.0
// Handles of the C interface are numbers dressed as pointers, never reused and never dereferenced: one that is stale,
// of another kind or made up is recognised without touching memory.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <new>

#include "acl/runtime/check.h"
#include "acl/runtime/errors.h"

namespace anynpu::acl {

// The kind sits in bits that no user-space address has, so that reading through a handle faults at once.
enum class Kind : uint64_t {
  context = 0xA1,
  stream,
  event,
  tensor,
  scalar,
  int_array,
  float_array,
  bool_array,
  tensor_list,
  scalar_list,
  executor
};

struct Object {
  check::Site created;
};

template <typename T>
class HandleTable {
 public:
  HandleTable(Kind kind, const char* name) : tag_(static_cast<uint64_t>(kind) << 56), name_(name) {}

  template <typename Handle>
  Handle add(std::shared_ptr<T> object) {
    object->created = check::here();
    std::lock_guard<std::mutex> lock(mutex_);
    const uint64_t handle = tag_ | (++issued_ << 4);
    live_.emplace(handle, std::move(object));
    return reinterpret_cast<Handle>(handle);
  }

  // The live object, or null.
  std::shared_ptr<T> find(const void* handle) const {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = live_.find(reinterpret_cast<uint64_t>(handle));
    return found == live_.end() ? nullptr : found->second;
  }

  // As find, with a status and a sentence, and a finding in checking mode.
  int32_t get(const char* call, const char* argument, const void* handle, int32_t null_status, int32_t stale_status,
              std::shared_ptr<T>* object) const {
    if (handle == nullptr) return report(null_status, "%s: %s is a null pointer", call, argument);
    *object = find(handle);
    return *object ? ACL_SUCCESS : stale(call, argument, handle, stale_status, "use-after-free");
  }

  int32_t remove(const char* call, const char* argument, const void* handle, int32_t null_status, int32_t stale_status,
                 std::shared_ptr<T>* object = nullptr) {
    if (handle == nullptr) return report(null_status, "%s: %s is a null pointer", call, argument);
    std::shared_ptr<T> removed = take(handle);
    if (!removed) return stale(call, argument, handle, stale_status, "double-free");
    if (object != nullptr) *object = std::move(removed);
    return ACL_SUCCESS;
  }

  // Removes the handle if it is live.
  std::shared_ptr<T> take(const void* handle) {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = live_.find(reinterpret_cast<uint64_t>(handle));
    if (found == live_.end()) return nullptr;
    std::shared_ptr<T> object = std::move(found->second);
    live_.erase(found);
    if (check::enabled) removed_[reinterpret_cast<uint64_t>(handle)] = {object->created, check::here()};
    return object;
  }

  template <typename Function>
  void for_each(const Function& function) const {
    std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& entry : live_) function(entry.second);
  }

 private:
  struct Removal {
    check::Site created, removed;
  };

  bool given_out(uint64_t handle) const {
    return (handle & ~uint64_t{0} << 56) == tag_ && (handle & 15) == 0 &&
           (handle & ~(uint64_t{0xFF} << 56)) >> 4 <= issued_ && handle != tag_;
  }

  int32_t stale(const char* call, const char* argument, const void* handle, int32_t status, const char* kind) const {
    std::lock_guard<std::mutex> lock(mutex_);
    const uint64_t number = reinterpret_cast<uint64_t>(handle);
    const bool destroyed = given_out(number);
    const char* why = destroyed ? "it was destroyed or used up before" : "it was never created";
    if (check::enabled) {
      const auto removal = removed_.find(number);
      const Removal sites = removal == removed_.end() ? Removal{} : removal->second;
      check::add({destroyed ? kind : "invalid-handle", call,
                  std::string(argument) + " is not a live " + name_ + ": " + why, sites.created, sites.removed});
    }
    return report(status, "%s: %s is not a live %s: %s", call, argument, name_, why);
  }

  const uint64_t tag_;
  const char* const name_;
  mutable std::mutex mutex_;
  uint64_t issued_ = 0;
  std::map<uint64_t, std::shared_ptr<T>> live_;  // in the order of creation
  std::map<uint64_t, Removal> removed_;
};

// The table of a kind. Never destroyed, since workers may outlive the exit handlers; made without an allocation, so that
// callers need not expect one to fail.
template <typename T, Kind kind>
HandleTable<T>& handle_table(const char* name) {
  alignas(HandleTable<T>) static unsigned char memory[sizeof(HandleTable<T>)];
  static auto* const table = new (memory) HandleTable<T>(kind, name);
  return *table;
}

}  // namespace anynpu::acl
