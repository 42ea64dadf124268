// SPDX-License-Identifier: Apache-2.0
#include "core/status.h"

#include <cstdarg>
#include <cstdio>

namespace anynpu {
namespace {
thread_local char last_error[1024] = "";
}

int32_t fail(anynpu_status status, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(last_error, sizeof(last_error), format, arguments);
  va_end(arguments);
  return status;
}

}  // namespace anynpu

extern "C" const char* anynpu_last_error(void) { return anynpu::last_error; }
extern "C" int32_t anynpu_abi_version(void) { return ANYNPU_ABI_VERSION; }
