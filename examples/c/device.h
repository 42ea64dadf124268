// SPDX-License-Identifier: Apache-2.0
// What the layers here share: device memory with tensors on it, and calls of both stages.
#ifndef EXAMPLES_DEVICE_H_
#define EXAMPLES_DEVICE_H_

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <numeric>
#include <vector>

#include "acl/acl.h"
#include "aclnn/acl_meta.h"

inline void check(int status, const char* what) {
  if (status == 0) return;
  const char* text = aclGetRecentErrMsg();
  std::fprintf(stderr, "%s failed with %d: %s\n", what, status, text ? text : "");
  std::exit(1);
}

// Device memory with a tensor on it, released together.
template <typename T>
class Tensor {
 public:
  Tensor(aclDataType dtype, const std::vector<int64_t>& shape) : dtype_(dtype), shape_(shape) {
    count_ = std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<int64_t>());
    check(aclrtMalloc(&data_, count_ * sizeof(T), ACL_MEM_MALLOC_HUGE_FIRST), "aclrtMalloc");
    tensor_ = view(shape);
  }
  Tensor(aclDataType dtype, const std::vector<int64_t>& shape, const std::vector<T>& values) : Tensor(dtype, shape) {
    write(values);
  }
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;
  ~Tensor() {
    aclDestroyTensor(tensor_);
    aclrtFree(data_);
  }
  aclTensor* get() const { return tensor_; }
  void write(const std::vector<T>& values) {
    const size_t bytes = count_ * sizeof(T);
    check(aclrtMemcpy(data_, bytes, values.data(), bytes, ACL_MEMCPY_HOST_TO_DEVICE), "aclrtMemcpy");
  }
  // Another tensor on the same memory.
  aclTensor* view(const std::vector<int64_t>& shape, const std::vector<int64_t>& strides = {},
                  int64_t offset = 0) const {
    return aclCreateTensor(shape.data(), shape.size(), dtype_, strides.empty() ? nullptr : strides.data(), offset,
                           ACL_FORMAT_ND, shape_.data(), shape_.size(), data_);
  }
  // A list of one tensor on the same memory, which is destroyed with the list.
  aclTensorList* list() const {
    const aclTensor* tensors[] = {view(shape_)};
    return aclCreateTensorList(tensors, 1);
  }
  std::vector<T> read() const {
    std::vector<T> values(count_);
    const size_t bytes = count_ * sizeof(T);
    check(aclrtMemcpy(values.data(), bytes, data_, bytes, ACL_MEMCPY_DEVICE_TO_HOST), "aclrtMemcpy");
    return values;
  }

 private:
  aclDataType dtype_;
  std::vector<int64_t> shape_;
  int64_t count_ = 0;
  void* data_ = nullptr;
  aclTensor* tensor_ = nullptr;
};

// Both stages, and a wait for the results.
template <typename First, typename Second>
void run(const char* name, aclrtStream stream, First first, Second second) {
  uint64_t size = 0;
  aclOpExecutor* executor = nullptr;
  check(first(&size, &executor), name);
  void* workspace = nullptr;
  if (size > 0) check(aclrtMalloc(&workspace, size, ACL_MEM_MALLOC_HUGE_FIRST), "aclrtMalloc");
  check(second(workspace, size, executor, stream), name);
  check(aclrtSynchronizeStream(stream), name);
  if (size > 0) aclrtFree(workspace);
}

#endif  // EXAMPLES_DEVICE_H_
