// SPDX-License-Identifier: Apache-2.0
// What the test programs share: a check that stops the program, and device tensors in one line.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "acl/acl.h"
#include "aclnn/aclnn_base.h"

#define EXPECT(condition)                                                                                  \
  do {                                                                                                     \
    if (!(condition)) {                                                                                    \
      const char* text = aclGetRecentErrMsg();                                                             \
      std::fprintf(stderr, "%s:%d: not true: %s\n%s\n", __FILE__, __LINE__, #condition, text ? text : ""); \
      std::exit(1);                                                                                        \
    }                                                                                                      \
  } while (0)

#define EXPECT_STATUS(expression, expected)                                                                \
  do {                                                                                                     \
    const int got_status = (expression);                                                                   \
    if (got_status != (expected)) {                                                                        \
      const char* text = aclGetRecentErrMsg();                                                             \
      std::fprintf(stderr, "%s:%d: %s gave %d, not %d\n%s\n", __FILE__, __LINE__, #expression, got_status, \
                   static_cast<int>(expected), text ? text : "");                                          \
      std::exit(1);                                                                                        \
    }                                                                                                      \
  } while (0)

#define EXPECT_OK(expression) EXPECT_STATUS(expression, ACL_SUCCESS)

inline int64_t product(const std::vector<int64_t>& shape) {
  int64_t count = 1;
  for (int64_t size : shape) count *= size;
  return count;
}

inline aclTensor* make_tensor(const std::vector<int64_t>& shape, aclDataType dtype, void* data) {
  return aclCreateTensor(shape.data(), shape.size(), dtype, nullptr, 0, ACL_FORMAT_ND, shape.data(), shape.size(),
                         data);
}

// A contiguous tensor with its own device memory.
template <typename T>
struct Device {
  void* data = nullptr;
  aclTensor* tensor = nullptr;
  size_t bytes;

  Device(const std::vector<int64_t>& shape, aclDataType dtype, const std::vector<T>& values)
      : bytes(values.size() * sizeof(T)) {
    EXPECT_OK(aclrtMalloc(&data, bytes, ACL_MEM_MALLOC_HUGE_FIRST));
    EXPECT_OK(aclrtMemcpy(data, bytes, values.data(), bytes, ACL_MEMCPY_HOST_TO_DEVICE));
    tensor = make_tensor(shape, dtype, data);
    EXPECT(tensor != nullptr);
  }
  Device(const Device&) = delete;
  ~Device() {
    EXPECT_OK(aclDestroyTensor(tensor));
    EXPECT_OK(aclrtFree(data));
  }
  std::vector<T> read() const {
    std::vector<T> values(bytes / sizeof(T));
    EXPECT_OK(aclrtMemcpy(values.data(), bytes, data, bytes, ACL_MEMCPY_DEVICE_TO_HOST));
    return values;
  }
};

struct Session {
  Session() {
    EXPECT_OK(aclInit(nullptr));
    EXPECT_OK(aclrtSetDevice(0));
  }
  ~Session() {
    EXPECT_OK(aclrtResetDevice(0));
    EXPECT_OK(aclFinalize());
  }
};

inline bool last_error_has(const char* text) {
  const char* message = aclGetRecentErrMsg();
  if (message != nullptr && std::strstr(message, text) != nullptr) return true;
  std::fprintf(stderr, "no '%s' in: %s\n", text, message ? message : "(nothing)");
  return false;
}
