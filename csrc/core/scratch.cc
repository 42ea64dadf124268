// SPDX-License-Identifier: Apache-2.0
#include "core/scratch.h"

#include <cstdlib>

namespace anynpu {
namespace {

struct Buffer {
  void* data = nullptr;
  size_t bytes = 0;
  ~Buffer() { std::free(data); }
};

}  // namespace

void* scratch(ScratchSlot slot, size_t bytes) {
  thread_local Buffer buffers[2];
  Buffer& buffer = buffers[static_cast<int>(slot)];
  if (bytes <= buffer.bytes) return buffer.data;
  std::free(buffer.data);
  buffer.bytes = 0;
  const size_t rounded = (bytes + kScratchAlignment - 1) / kScratchAlignment * kScratchAlignment;
  buffer.data = rounded < bytes ? nullptr : std::aligned_alloc(kScratchAlignment, rounded);
  if (buffer.data != nullptr) buffer.bytes = rounded;
  return buffer.data;
}

}  // namespace anynpu
