// SPDX-License-Identifier: Apache-2.0
#include "acl/runtime/errors.h"

#include <cstdarg>
#include <cstdio>
#include <deque>

namespace anynpu::acl {
namespace {

constexpr size_t kKept = 16;
thread_local std::deque<std::string> recent;
thread_local std::string handed_out;

int32_t keep(int32_t status, const std::string& sentence) {
  try {
    recent.push_front("[" + std::to_string(status) + "] " + sentence);
    if (recent.size() > kKept) recent.pop_back();
  } catch (const std::bad_alloc&) {
    recent.clear();
  }
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

int32_t report(const Failure& failure) { return keep(failure.status, failure.text); }

}  // namespace anynpu::acl

extern "C" const char* aclGetRecentErrMsg(void) {
  using namespace anynpu::acl;
  if (recent.empty()) return nullptr;
  handed_out.clear();
  for (const std::string& sentence : recent) handed_out += (handed_out.empty() ? "" : "\n") + sentence;
  recent.clear();
  return handed_out.c_str();
}
