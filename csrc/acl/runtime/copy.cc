// SPDX-License-Identifier: Apache-2.0
// aclrtMemcpy and aclrtMemset. The synchronous forms wait for the device first.
#include <cstring>

#include "acl/runtime/memory.h"
#include "acl/runtime/stream.h"

namespace anynpu::acl {
namespace {

// One side of a copy: rows of `width` bytes, `pitch` apart.
struct Rows {
  void* begin;
  size_t pitch, width, height;
  size_t bytes() const { return width == 0 || height == 0 ? 0 : pitch * (height - 1) + width; }
};

struct Copy {
  Rows to, from;
  AllocationPtr to_memory, from_memory;

  void run() const {
    if (to.pitch == to.width && from.pitch == from.width) {
      std::memmove(to.begin, from.begin, to.bytes());
      return;
    }
    for (size_t row = 0; row < to.height; ++row) {
      std::memcpy(static_cast<char*>(to.begin) + row * to.pitch, static_cast<char*>(from.begin) + row * from.pitch,
                  to.width);
    }
  }
};

// A device side must be live device memory; a host side is any address, but memory we know is never overrun.
int32_t check_side(const char* call, const char* name, const Rows& rows, bool on_device, AllocationPtr* memory) {
  if (on_device) {
    if (check::enabled) inspect_range(call, name, rows.begin, rows.bytes());
    return device_range(call, name, rows.begin, rows.bytes(), ACL_ERROR_RT_PARAM_INVALID, memory);
  }
  *memory = allocation_at(rows.begin);
  if (!*memory || (*memory)->holds(rows.begin, rows.bytes(), (*memory)->size)) return ACL_SUCCESS;
  return report(ACL_ERROR_RT_PARAM_INVALID, "%s: %s needs %zu bytes, more than its allocation of %zu holds", call, name,
                rows.bytes(), (*memory)->size);
}

int32_t check_copy(const char* call, Copy& copy, aclrtMemcpyKind kind) {
  if (copy.to.begin == nullptr || copy.from.begin == nullptr) {
    return report(ACL_ERROR_INVALID_PARAM, "%s: %s is a null pointer", call, copy.to.begin == nullptr ? "dst" : "src");
  }
  if (kind < ACL_MEMCPY_HOST_TO_HOST || kind > ACL_MEMCPY_DEFAULT) {
    return report(ACL_ERROR_INVALID_PARAM, "%s: unknown kind %d", call, static_cast<int>(kind));
  }
  const bool to_device = kind == ACL_MEMCPY_HOST_TO_DEVICE || kind == ACL_MEMCPY_DEVICE_TO_DEVICE;
  const bool from_device = kind == ACL_MEMCPY_DEVICE_TO_HOST || kind == ACL_MEMCPY_DEVICE_TO_DEVICE;
  if (const int32_t status = check_side(call, "dst", copy.to, to_device, &copy.to_memory)) return status;
  return check_side(call, "src", copy.from, from_device, &copy.from_memory);
}

int32_t check_room(const char* call, size_t room, size_t count) {
  if (room >= count) return ACL_SUCCESS;
  return report(ACL_ERROR_INVALID_PARAM, "%s: count is %zu, more than the destination's %zu", call, count, room);
}

int32_t check_pitches(const char* call, size_t dpitch, size_t spitch, size_t width, size_t height) {
  size_t end = 0;
  if (width > dpitch || width > spitch || __builtin_mul_overflow(dpitch > spitch ? dpitch : spitch, height, &end)) {
    return report(ACL_ERROR_INVALID_PARAM, "%s: width %zu, height %zu do not fit the pitches %zu (dst) and %zu (src)",
                  call, width, height, dpitch, spitch);
  }
  return ACL_SUCCESS;
}

int32_t copy_now(const char* call, Copy copy, aclrtMemcpyKind kind) {
  if (copy.to.bytes() == 0) return ACL_SUCCESS;
  if (const int32_t status = check_copy(call, copy, kind)) return status;
  const bool to_host = kind == ACL_MEMCPY_DEVICE_TO_HOST || kind == ACL_MEMCPY_DEFAULT;
  if (check::enabled && to_host) check::host_reads(call, copy.from.begin, copy.from.bytes());
  wait_for_all(-1);
  copy.run();
  return ACL_SUCCESS;
}

int32_t copy_later(const char* call, Copy copy, aclrtMemcpyKind kind, aclrtStream handle) {
  StreamPtr stream;
  if (const int32_t status = get_stream(call, handle, &stream)) return status;
  if (copy.to.bytes() == 0) return ACL_SUCCESS;
  if (const int32_t status = check_copy(call, copy, kind)) return status;
  const Rows to = copy.to;
  const uint64_t sequence = stream->submit([copy = std::move(copy)] {
    copy.run();
    return Failure{};
  });
  if (check::enabled) check::wrote(stream->id(), sequence, to.begin, to.bytes(), call);
  return ACL_SUCCESS;
}

int32_t check_set(const char* call, const Rows& rows, size_t room, AllocationPtr* memory) {
  if (rows.begin == nullptr) return report(ACL_ERROR_INVALID_PARAM, "%s: devPtr is a null pointer", call);
  if (const int32_t status = check_room(call, room, rows.width)) return status;
  return check_side(call, "devPtr", rows, true, memory);
}

Rows line(const void* begin, size_t count) { return {const_cast<void*>(begin), count, count, count == 0 ? 0u : 1u}; }

}  // namespace
}  // namespace anynpu::acl

using namespace anynpu::acl;

extern "C" aclError aclrtMemcpy(void* dst, size_t destMax, const void* src, size_t count, aclrtMemcpyKind kind) {
  return guarded("aclrtMemcpy", [&]() -> int32_t {
    if (const int32_t status = check_room("aclrtMemcpy", destMax, count)) return status;
    return copy_now("aclrtMemcpy", {line(dst, count), line(src, count), nullptr, nullptr}, kind);
  });
}

extern "C" aclError aclrtMemcpyAsync(void* dst, size_t destMax, const void* src, size_t count, aclrtMemcpyKind kind,
                                     aclrtStream stream) {
  return guarded("aclrtMemcpyAsync", [&]() -> int32_t {
    if (const int32_t status = check_room("aclrtMemcpyAsync", destMax, count)) return status;
    return copy_later("aclrtMemcpyAsync", {line(dst, count), line(src, count), nullptr, nullptr}, kind, stream);
  });
}

extern "C" aclError aclrtMemcpy2d(void* dst, size_t dpitch, const void* src, size_t spitch, size_t width, size_t height,
                                  aclrtMemcpyKind kind) {
  return guarded("aclrtMemcpy2d", [&]() -> int32_t {
    if (const int32_t status = check_pitches("aclrtMemcpy2d", dpitch, spitch, width, height)) return status;
    const Rows to{dst, dpitch, width, height}, from{const_cast<void*>(src), spitch, width, height};
    return copy_now("aclrtMemcpy2d", {to, from, nullptr, nullptr}, kind);
  });
}

extern "C" aclError aclrtMemcpy2dAsync(void* dst, size_t dpitch, const void* src, size_t spitch, size_t width,
                                       size_t height, aclrtMemcpyKind kind, aclrtStream stream) {
  return guarded("aclrtMemcpy2dAsync", [&]() -> int32_t {
    if (const int32_t status = check_pitches("aclrtMemcpy2dAsync", dpitch, spitch, width, height)) return status;
    const Rows to{dst, dpitch, width, height}, from{const_cast<void*>(src), spitch, width, height};
    return copy_later("aclrtMemcpy2dAsync", {to, from, nullptr, nullptr}, kind, stream);
  });
}

extern "C" aclError aclrtMemset(void* devPtr, size_t maxCount, int32_t value, size_t count) {
  return guarded("aclrtMemset", [&]() -> int32_t {
    AllocationPtr memory;
    if (const int32_t status = check_set("aclrtMemset", line(devPtr, count), maxCount, &memory)) return status;
    wait_for_all(-1);
    std::memset(devPtr, value, count);
    return ACL_SUCCESS;
  });
}

extern "C" aclError aclrtMemsetAsync(void* devPtr, size_t maxCount, int32_t value, size_t count, aclrtStream stream) {
  return guarded("aclrtMemsetAsync", [&]() -> int32_t {
    StreamPtr found;
    AllocationPtr memory;
    if (const int32_t status = get_stream("aclrtMemsetAsync", stream, &found)) return status;
    if (const int32_t status = check_set("aclrtMemsetAsync", line(devPtr, count), maxCount, &memory)) return status;
    const uint64_t sequence = found->submit([devPtr, value, count, memory] {
      std::memset(devPtr, value, count);
      return Failure{};
    });
    if (check::enabled) check::wrote(found->id(), sequence, devPtr, count, "aclrtMemsetAsync");
    return ACL_SUCCESS;
  });
}
