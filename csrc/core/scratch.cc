// SPDX-License-Identifier: Apache-2.0
#include "core/scratch.h"

#include <sys/mman.h>

#include <cstdlib>

namespace anynpu {
namespace {

constexpr size_t kHugePage = size_t{1} << 21;

struct Buffer {
  void* data = nullptr;
  size_t bytes = 0;
  ~Buffer() { std::free(data); }
};

}  // namespace

void* scratch(ScratchSlot slot, size_t bytes) {
  thread_local Buffer buffers[3];
  Buffer& buffer = buffers[static_cast<int>(slot)];
  if (bytes <= buffer.bytes) return buffer.data;
  std::free(buffer.data);
  buffer.bytes = 0;
  const size_t alignment = bytes < kHugePage ? kScratchAlignment : kHugePage;
  const size_t rounded = (bytes + alignment - 1) / alignment * alignment;
  buffer.data = rounded < bytes ? nullptr : std::aligned_alloc(alignment, rounded);
#ifdef MADV_HUGEPAGE
  if (buffer.data != nullptr && alignment == kHugePage) madvise(buffer.data, rounded, MADV_HUGEPAGE);  // where allowed
#endif
  if (buffer.data != nullptr) buffer.bytes = rounded;
  return buffer.data;
}

}  // namespace anynpu
