// SPDX-License-Identifier: Apache-2.0
// A malloc that fails when it is told to. Linked into a program it serves the libraries too; what the program's own code
// asks for never fails.
#include "failing_malloc.h"

#include <atomic>
#include <cstdlib>
#include <new>

extern "C" void* __libc_malloc(size_t bytes);
extern "C" void* __libc_memalign(size_t alignment, size_t bytes);
extern "C" const char __executable_start, etext;

namespace {

std::atomic<int64_t> before_failure{-1};
std::atomic<bool> failed{false}, all_fail{false};

bool fails() {
  int64_t left = before_failure.load();
  while (left > 0 && !before_failure.compare_exchange_weak(left, left - 1)) {
  }
  if (left != 0) return false;
  failed = true;
  if (!all_fail) before_failure = -1;
  return true;
}

}  // namespace

extern "C" void fail_allocations(int64_t first, bool all) {
  failed = false;
  all_fail = all;
  before_failure = first;
}

extern "C" bool allocations_failed() { return failed; }

extern "C" void* malloc(size_t bytes) { return fails() ? nullptr : __libc_malloc(bytes); }

extern "C" void* aligned_alloc(size_t alignment, size_t bytes) {
  return fails() ? nullptr : __libc_memalign(alignment, bytes);
}

void* operator new(size_t bytes) {
  const auto* from = static_cast<const char*>(__builtin_return_address(0));
  void* memory = from >= &__executable_start && from < &etext ? __libc_malloc(bytes) : malloc(bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

void operator delete(void* memory) noexcept { std::free(memory); }
