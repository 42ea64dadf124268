// SPDX-License-Identifier: Apache-2.0
// A matmul with losslessly compressed int8 weights: reads the arrays of a folder, multiplies on a stream, and compares with
// the product of the uncompressed weight.
//   anynpu run examples/python/torch_npu_compressed_matmul.py data
//   anynpu cc examples/c/compressed_matmul.cpp -O2 -o compressed_matmul && ./compressed_matmul data
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "acl/acl.h"
#include "aclnnop/aclnn_matmul_compress_dequant.h"

namespace {

void check(int status, const char* what) {
  if (status == 0) return;
  const char* text = aclGetRecentErrMsg();
  std::fprintf(stderr, "%s failed with %d: %s\n", what, status, text ? text : "");
  std::exit(1);
}

template <typename T>
std::vector<T> read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (bytes.empty() || bytes.size() % sizeof(T) != 0) {
    std::fprintf(stderr, "cannot read %s\n", path.c_str());
    std::exit(1);
  }
  std::vector<T> values(bytes.size() / sizeof(T));
  std::copy(bytes.begin(), bytes.end(), reinterpret_cast<char*>(values.data()));
  return values;
}

// Device memory with a tensor on it, released together.
class Tensor {
 public:
  template <typename T>
  Tensor(const std::vector<int64_t>& shape, aclDataType dtype, const std::vector<T>& values)
      : Tensor(shape, dtype, values.size() * sizeof(T)) {
    check(aclrtMemcpy(data_, bytes_, values.data(), bytes_, ACL_MEMCPY_HOST_TO_DEVICE), "aclrtMemcpy");
  }
  Tensor(const std::vector<int64_t>& shape, aclDataType dtype, size_t bytes) : bytes_(bytes) {
    check(aclrtMalloc(&data_, bytes, ACL_MEM_MALLOC_HUGE_FIRST), "aclrtMalloc");
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
  void read_back(void* values) const {
    check(aclrtMemcpy(values, bytes_, data_, bytes_, ACL_MEMCPY_DEVICE_TO_HOST), "aclrtMemcpy");
  }

 private:
  size_t bytes_;
  void* data_ = nullptr;
  aclTensor* tensor_ = nullptr;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s FOLDER\n", argv[0]);
    return 2;
  }
  const std::string folder = std::string(argv[1]) + "/";
  const auto x1 = read<int8_t>(folder + "x1.bin"), x2 = read<int8_t>(folder + "x2.bin");
  const auto index = read<int8_t>(folder + "compress_index.bin");
  const auto info = read<int64_t>(folder + "compress_info.bin");  // tilingK, tilingN, k, n, flag
  const auto bias = read<int32_t>(folder + "bias.bin");
  const auto scale = read<uint64_t>(folder + "deq_scale.bin");
  const auto expected = read<uint16_t>(folder + "expected.bin");
  if (info.size() != 5 || info[2] <= 0) {
    std::fprintf(stderr, "compress_info.bin must hold five numbers with a positive k\n");
    return 1;
  }
  const int64_t k = info[2], n = info[3], m = static_cast<int64_t>(x1.size()) / k;
  std::vector<uint16_t> y(m * n);

  check(aclInit(nullptr), "aclInit");
  check(aclrtSetDevice(0), "aclrtSetDevice");
  aclrtStream stream = nullptr;
  check(aclrtCreateStream(&stream), "aclrtCreateStream");
  {
    const Tensor device_x1({m, k}, ACL_INT8, x1), device_x2({static_cast<int64_t>(x2.size())}, ACL_INT8, x2);
    const Tensor device_index({static_cast<int64_t>(index.size())}, ACL_INT8, index);
    const Tensor device_bias({1, n}, ACL_INT32, bias), device_scale({1, n}, ACL_UINT64, scale);
    const Tensor device_y({m, n}, ACL_FLOAT16, y.size() * sizeof(uint16_t));
    aclIntArray* compress_info = aclCreateIntArray(info.data(), info.size());
    uint64_t size = 0;
    aclOpExecutor* executor = nullptr;
    check(aclnnMatmulCompressDequantGetWorkspaceSize(device_x1.get(), device_x2.get(), device_index.get(),
                                                     device_bias.get(), device_scale.get(), nullptr, 0, compress_info,
                                                     device_y.get(), &size, &executor),
          "aclnnMatmulCompressDequantGetWorkspaceSize");
    void* workspace = nullptr;
    if (size > 0) check(aclrtMalloc(&workspace, size, ACL_MEM_MALLOC_HUGE_FIRST), "aclrtMalloc");
    check(aclnnMatmulCompressDequant(workspace, size, executor, stream), "aclnnMatmulCompressDequant");
    check(aclrtSynchronizeStream(stream), "aclrtSynchronizeStream");
    if (size > 0) aclrtFree(workspace);
    device_y.read_back(y.data());
    aclDestroyIntArray(compress_info);
  }
  aclrtDestroyStream(stream);
  aclrtResetDevice(0);
  aclFinalize();

  std::printf("(%lld, %lld) x (%lld, %lld): weight %lld bytes, compressed %zu\n", (long long)m, (long long)k,
              (long long)k, (long long)n, (long long)(k * n), x2.size() + index.size());
  std::printf("equal to the uncompressed product, bit for bit: %s\n", y == expected ? "yes" : "no");
  return y == expected ? 0 : 1;
}
