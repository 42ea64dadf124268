// SPDX-License-Identifier: Apache-2.0
// A matmul with int4 weights from end to end: quantise per channel on the host, pack to INT4 and multiply on a stream,
// and compare with the float result.
//   anynpu cc examples/c/int4_matmul.cpp -O2 -o int4_matmul && ./int4_matmul
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <utility>
#include <vector>

#include "acl/acl.h"
#include "aclnnop/aclnn_convert_weight_to_int4_pack.h"
#include "aclnnop/aclnn_weight_quant_batch_matmul_v2.h"

namespace {

constexpr int64_t M = 4, K = 256, N = 64;

void check(int status, const char* what) {
  if (status == 0) return;
  const char* text = aclGetRecentErrMsg();
  std::fprintf(stderr, "%s failed with %d: %s\n", what, status, text ? text : "");
  std::exit(1);
}

// Device memory with a tensor on it, released together.
class Tensor {
 public:
  Tensor(std::vector<int64_t> shape, aclDataType dtype, size_t bytes, const void* values = nullptr) : bytes_(bytes) {
    check(aclrtMalloc(&data_, bytes, ACL_MEM_MALLOC_HUGE_FIRST), "aclrtMalloc");
    if (values) check(aclrtMemcpy(data_, bytes, values, bytes, ACL_MEMCPY_HOST_TO_DEVICE), "aclrtMemcpy");
    tensor_ = aclCreateTensor(shape.data(), shape.size(), dtype, nullptr, 0, ACL_FORMAT_ND, shape.data(), shape.size(),
                              data_);
  }
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;
  ~Tensor() {
    aclDestroyTensor(tensor_);
    aclrtFree(data_);
  }
  aclTensor* get() const { return tensor_; }
  void read(void* values) const {
    check(aclrtMemcpy(values, bytes_, data_, bytes_, ACL_MEMCPY_DEVICE_TO_HOST), "aclrtMemcpy");
  }

 private:
  size_t bytes_;
  void* data_ = nullptr;
  aclTensor* tensor_ = nullptr;
};

// The second stage of any operator, with the workspace that the first one asked for.
template <typename Launch>
void launch(Launch function, uint64_t size, aclOpExecutor* executor, aclrtStream stream, const char* name) {
  void* workspace = nullptr;
  if (size > 0) check(aclrtMalloc(&workspace, size, ACL_MEM_MALLOC_HUGE_FIRST), "aclrtMalloc");
  check(function(workspace, size, executor, stream), name);
  check(aclrtSynchronizeStream(stream), "aclrtSynchronizeStream");
  if (size > 0) aclrtFree(workspace);
}

float pseudo_random(uint32_t& state) {
  state = state * 1664525u + 1013904223u;
  return static_cast<float>(state >> 8) / (1 << 23) - 1.0f;
}

}  // namespace

int main() {
  check(aclInit(nullptr), "aclInit");
  check(aclrtSetDevice(0), "aclrtSetDevice");
  aclrtStream stream = nullptr;
  check(aclrtCreateStream(&stream), "aclrtCreateStream");

  uint32_t state = 1;
  std::vector<float> x(M * K), weight(K * N), scale(N, 0.0f), y(M * N);
  for (float& value : x) value = pseudo_random(state);
  for (float& value : weight) value = pseudo_random(state);
  for (int64_t i = 0; i < K * N; ++i) scale[i % N] = std::max(scale[i % N], std::fabs(weight[i]) / 7);
  std::vector<int32_t> quantised(K * N);
  for (int64_t i = 0; i < K * N; ++i) quantised[i] = static_cast<int32_t>(std::lround(weight[i] / scale[i % N]));

  double error = 0, magnitude = 0;
  {
    uint64_t size = 0;
    aclOpExecutor* executor = nullptr;
    const Tensor device_x({M, K}, ACL_FLOAT, M * K * sizeof(float), x.data());
    const Tensor device_weight({K, N}, ACL_INT32, K * N * sizeof(int32_t), quantised.data());
    const Tensor device_scale({N}, ACL_FLOAT, N * sizeof(float), scale.data());
    const Tensor packed({K, N}, ACL_INT4, K * N / 2), device_y({M, N}, ACL_FLOAT, M * N * sizeof(float));

    check(aclnnConvertWeightToINT4PackGetWorkspaceSize(device_weight.get(), packed.get(), &size, &executor), "packing");
    launch(aclnnConvertWeightToINT4Pack, size, executor, stream, "aclnnConvertWeightToINT4Pack");
    check(aclnnWeightQuantBatchMatmulV2GetWorkspaceSize(device_x.get(), packed.get(), device_scale.get(), nullptr,
                                                        nullptr, nullptr, nullptr, 0, device_y.get(), &size, &executor),
          "matmul");
    launch(aclnnWeightQuantBatchMatmulV2, size, executor, stream, "aclnnWeightQuantBatchMatmulV2");
    device_y.read(y.data());
  }

  for (int64_t m = 0; m < M; ++m) {
    for (int64_t n = 0; n < N; ++n) {
      double exact = 0;
      for (int64_t k = 0; k < K; ++k) exact += double(x[m * K + k]) * weight[k * N + n];
      error += (y[m * N + n] - exact) * (y[m * N + n] - exact);
      magnitude += exact * exact;
    }
  }
  std::printf("weights: %lld bytes as float32, %lld as int4\n", (long long)(K * N * 4), (long long)(K * N / 2));
  std::printf("relative error of the product: %.3f\n", std::sqrt(error / magnitude));

  aclrtDestroyStream(stream);
  aclrtResetDevice(0);
  aclFinalize();
  return 0;
}
