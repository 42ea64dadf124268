// SPDX-License-Identifier: Apache-2.0
#include "acl/runtime/errors.h"

#include <cstdarg>
#include <cstdio>
#include <cstring>

namespace anynpu::acl {
namespace {

constexpr size_t kKept = 4096;
// Newest first, a line each. Not strings: what tells of a failed allocation must not allocate.
thread_local char recent[kKept] = "";
thread_local char handed_out[kKept] = "";

int32_t keep(int32_t status, const char* sentence) {
  char all[kKept];
  const int length = std::snprintf(all, kKept, "[%d] %s%s%s", status, sentence, *recent == '\0' ? "" : "\n", recent);
  char* const last = std::strrchr(all, '\n');
  if (length >= static_cast<int>(kKept) && last != nullptr) *last = '\0';  // without the one that is cut off
  std::strcpy(recent, all);
  return status;
}

}  // namespace

int32_t report(int32_t status, const char* format, ...) {
  char text[2048];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof(text), format, arguments);
  va_end(arguments);
  return keep(status, text);
}

int32_t report(const Failure& failure) { return keep(failure.status, failure.text.c_str()); }

}  // namespace anynpu::acl

extern "C" const char* aclGetRecentErrMsg(void) {
  using namespace anynpu::acl;
  if (*recent == '\0') return nullptr;
  std::strcpy(handed_out, recent);
  *recent = '\0';
  return handed_out;
}
