// SPDX-License-Identifier: Apache-2.0
// Errors of the acl and aclnn functions: a status for the caller and a sentence for aclGetRecentErrMsg.
#pragma once

#include <exception>
#include <new>
#include <string>

#include "acl/acl_base.h"

namespace anynpu::acl {

// What went wrong; status 0 is success. Carries a failure from a stream's worker to the thread that waits for it.
struct Failure {
  int32_t status = ACL_SUCCESS;
  std::string text;
};

// Keeps the sentence for this thread's aclGetRecentErrMsg and returns `status`.
ACL_FUNC_VISIBILITY int32_t report(int32_t status, const char* format, ...) __attribute__((format(printf, 2, 3)));
ACL_FUNC_VISIBILITY int32_t report(const Failure& failure);

// Runs the body of an extern "C" function: nothing it throws leaves it.
template <typename Body>
int32_t guarded(const char* call, const Body& body, int32_t no_memory = ACL_ERROR_BAD_ALLOC,
                int32_t internal = ACL_ERROR_INTERNAL_ERROR) {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return report(no_memory, "%s: no memory", call);
  } catch (const std::exception& error) {
    return report(internal, "%s: %s", call, error.what());
  }
}

}  // namespace anynpu::acl
