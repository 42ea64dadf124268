// SPDX-License-Identifier: Apache-2.0
#include "acl/runtime/memory.h"

#include <unistd.h>

#include <cstdlib>
#include <deque>
#include <map>
#include <mutex>
#include <shared_mutex>

#include "acl/acl_rt.h"
#include "acl/runtime/device.h"
#include "acl/runtime/errors.h"

namespace anynpu::acl {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kPage = size_t{4} << 10;
constexpr size_t kAlignment = 512;
constexpr size_t kQuarantine = size_t{256} << 20;

struct Registry {
  std::shared_mutex mutex;
  std::map<uintptr_t, AllocationPtr> live;
  size_t device_bytes = 0;
  uint64_t allocations = 0;
  // Checking mode only: what was freed, newest last. The memory itself is held back so that its addresses stay unused.
  struct Freed {
    AllocationPtr allocation;
    check::Site freed;
  };
  std::deque<Freed> freed;
  size_t quarantined = 0;
};

Registry& registry() {
  static auto* instance = new Registry;  // never destroyed: workers may outlive the exit handlers
  return *instance;
}

uintptr_t number(const void* address) { return reinterpret_cast<uintptr_t>(address); }

AllocationPtr find_locked(const Registry& all, const void* address) {
  auto next = all.live.upper_bound(number(address));
  if (next == all.live.begin()) return nullptr;
  const AllocationPtr& candidate = std::prev(next)->second;
  return number(address) - number(candidate->base) < candidate->size ? candidate : nullptr;
}

const Registry::Freed* find_freed_locked(const Registry& all, const void* address) {
  for (auto entry = all.freed.rbegin(); entry != all.freed.rend(); ++entry) {
    if (number(address) - number(entry->allocation->base) < entry->allocation->size) return &*entry;
  }
  return nullptr;
}

size_t physical_bytes() {
  static const size_t bytes =
      static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGE_SIZE));
  return bytes;
}

int32_t allocate(const char* call, void** address, size_t size, size_t granule, bool on_host) {
  if (address == nullptr) return report(ACL_ERROR_INVALID_PARAM, "%s: the address of the pointer is null", call);
  if (size == 0) return report(ACL_ERROR_INVALID_PARAM, "%s: size must be positive, got 0", call);
  if (!on_host && !has_device()) {
    return report(ACL_ERROR_RT_CONTEXT_NULL, "%s: no device is set; call aclrtSetDevice first", call);
  }
  auto allocation = std::make_shared<Allocation>();
  if (size <= physical_bytes()) {
    allocation->size = (size + granule - 1) / granule * granule;
    allocation->base = std::aligned_alloc(kAlignment, allocation->size);
  }
  if (allocation->base == nullptr) {
    return report(ACL_ERROR_RT_MEMORY_ALLOCATION, "%s: cannot allocate %zu bytes (the machine has %zu)", call, size,
                  physical_bytes());
  }
  allocation->requested = size;
  allocation->on_host = on_host;
  allocation->created = check::here();
  Registry& all = registry();
  std::unique_lock<std::shared_mutex> lock(all.mutex);
  allocation->number = ++all.allocations;
  all.live.emplace(number(allocation->base), allocation);
  if (!on_host) all.device_bytes += allocation->size;
  *address = allocation->base;
  return ACL_SUCCESS;
}

void quarantine_locked(Registry& all, AllocationPtr allocation) {
  all.quarantined += allocation->size;
  all.freed.push_back({std::move(allocation), check::here()});
  while (all.quarantined > kQuarantine) {
    all.quarantined -= all.freed.front().allocation->size;
    all.freed.pop_front();
  }
}

int32_t refuse_free(const char* call, const void* address, const AllocationPtr& around, const Registry::Freed* freed) {
  const char* why = around
                        ? (around->base == address ? "it was allocated by the other of aclrtMalloc and aclrtMallocHost"
                                                   : "it points into an allocation, not at its start")
                        : "it is not the start of a live allocation";
  if (check::enabled) {
    check::add({freed ? "double-free" : "invalid-free", call,
                freed ? "memory of " + std::to_string(freed->allocation->requested) + " bytes freed before" : why,
                freed ? freed->allocation->created : (around ? around->created : nullptr),
                freed ? freed->freed : nullptr});
  }
  return report(ACL_ERROR_RT_PARAM_INVALID, "%s: %p cannot be freed: %s", call, address, why);
}

int32_t release(const char* call, void* address, bool on_host) {
  if (address == nullptr) return report(ACL_ERROR_INVALID_PARAM, "%s: the pointer is null", call);
  AllocationPtr allocation;  // released after the lock
  Registry& all = registry();
  std::unique_lock<std::shared_mutex> lock(all.mutex);
  const auto found = all.live.find(number(address));
  if (found == all.live.end() || found->second->on_host != on_host) {
    const AllocationPtr around = find_locked(all, address);
    return refuse_free(call, address, around, around ? nullptr : find_freed_locked(all, address));
  }
  allocation = std::move(found->second);
  all.live.erase(found);
  if (!on_host) all.device_bytes -= allocation->size;
  if (check::enabled) quarantine_locked(all, allocation);
  return ACL_SUCCESS;
}

size_t granule_of(aclrtMemMallocPolicy policy) {
  const int kind = policy & 0xFF;
  return kind == ACL_MEM_MALLOC_NORMAL_ONLY || kind == ACL_MEM_MALLOC_NORMAL_ONLY_P2P ? kPage : kHugePage;
}

void find_leaks() {
  Registry& all = registry();
  std::shared_lock<std::shared_mutex> lock(all.mutex);
  std::map<uint64_t, AllocationPtr> by_age;
  for (const auto& entry : all.live) by_age.emplace(entry.second->number, entry.second);
  for (const auto& entry : by_age) {
    const Allocation& allocation = *entry.second;
    check::add({allocation.on_host ? "leaked-host-memory" : "leaked-memory", "",
                std::to_string(allocation.requested) + " bytes of " + (allocation.on_host ? "host" : "device") +
                    " memory never freed",
                allocation.created, nullptr});
  }
}

[[maybe_unused]] const bool registered = (check::on_report(find_leaks), true);

}  // namespace

Allocation::~Allocation() { std::free(base); }

AllocationPtr allocation_at(const void* address) {
  Registry& all = registry();
  std::shared_lock<std::shared_mutex> lock(all.mutex);
  return find_locked(all, address);
}

int32_t device_range(const char* call, const std::string& what, const void* begin, size_t bytes, int32_t status,
                     AllocationPtr* allocation) {
  *allocation = allocation_at(begin);
  const AllocationPtr& around = *allocation;
  if (!around || around->on_host) {
    return report(status, "%s: %s is not in live device memory (%p)", call, what.c_str(), begin);
  }
  if (around->holds(begin, bytes, around->size)) return ACL_SUCCESS;
  return report(status, "%s: %s needs %zu bytes from %p, but the device memory there ends after %zu", call,
                what.c_str(), bytes, begin, static_cast<size_t>(number(around->base) + around->size - number(begin)));
}

bool inspect_freed(const char* call, const std::string& what, const void* begin) {
  check::Site created, freed;
  {
    std::shared_lock<std::shared_mutex> lock(registry().mutex);
    if (find_locked(registry(), begin)) return false;
    const Registry::Freed* entry = find_freed_locked(registry(), begin);
    if (entry == nullptr) return false;
    created = entry->allocation->created;
    freed = entry->freed;
  }
  check::add({"use-after-free", call, what + " points to device memory that was freed", created, freed});
  return true;
}

void inspect_range(const char* call, const std::string& what, const void* begin, size_t bytes) {
  const AllocationPtr around = allocation_at(begin);
  if (!around || around->on_host) {
    if (inspect_freed(call, what, begin)) return;
    check::add({"host-pointer", call, what + " has a host address where a device address is needed",
                around ? around->created : nullptr, nullptr});
  } else if (!around->holds(begin, bytes, around->requested)) {
    check::add({"exceeds-allocation", call,
                what + " needs " + std::to_string(bytes) + " bytes, but its device memory was allocated with " +
                    std::to_string(around->requested) + " (" + std::to_string(around->size) + " after rounding up)",
                around->created, nullptr});
  }
}

}  // namespace anynpu::acl

using namespace anynpu::acl;

extern "C" aclError aclrtMalloc(void** devPtr, size_t size, aclrtMemMallocPolicy policy) {
  return guarded("aclrtMalloc", [&] { return allocate("aclrtMalloc", devPtr, size, granule_of(policy), false); });
}

extern "C" aclError aclrtMallocAlign32(void** devPtr, size_t size, aclrtMemMallocPolicy policy) {
  return guarded("aclrtMallocAlign32",
                 [&] { return allocate("aclrtMallocAlign32", devPtr, size, granule_of(policy), false); });
}

extern "C" aclError aclrtMallocCached(void** devPtr, size_t size, aclrtMemMallocPolicy policy) {
  return guarded("aclrtMallocCached",
                 [&] { return allocate("aclrtMallocCached", devPtr, size, granule_of(policy), false); });
}

extern "C" aclError aclrtFree(void* devPtr) {
  return guarded("aclrtFree", [&] { return release("aclrtFree", devPtr, false); });
}

extern "C" aclError aclrtMallocHost(void** hostPtr, size_t size) {
  return guarded("aclrtMallocHost", [&] { return allocate("aclrtMallocHost", hostPtr, size, kPage, true); });
}

extern "C" aclError aclrtFreeHost(void* hostPtr) {
  return guarded("aclrtFreeHost", [&] { return release("aclrtFreeHost", hostPtr, true); });
}

// The host's caches are coherent: there is nothing to flush or to invalidate.
extern "C" aclError aclrtMemFlush(void* devPtr, size_t size) {
  return guarded("aclrtMemFlush", [&] {
    AllocationPtr allocation;
    return device_range("aclrtMemFlush", "devPtr", devPtr, size, ACL_ERROR_RT_PARAM_INVALID, &allocation);
  });
}

extern "C" aclError aclrtMemInvalidate(void* devPtr, size_t size) {
  return guarded("aclrtMemInvalidate", [&] {
    AllocationPtr allocation;
    return device_range("aclrtMemInvalidate", "devPtr", devPtr, size, ACL_ERROR_RT_PARAM_INVALID, &allocation);
  });
}

extern "C" aclError aclrtGetMemInfo(aclrtMemAttr, size_t* free, size_t* total) {
  return guarded("aclrtGetMemInfo", [&]() -> int32_t {
    if (free == nullptr || total == nullptr) {
      return report(ACL_ERROR_INVALID_PARAM, "aclrtGetMemInfo: a pointer is null");
    }
    std::shared_lock<std::shared_mutex> lock(registry().mutex);
    *total = physical_bytes();
    *free = *total > registry().device_bytes ? *total - registry().device_bytes : 0;
    return ACL_SUCCESS;
  });
}
