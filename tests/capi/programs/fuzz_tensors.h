// SPDX-License-Identifier: Apache-2.0
// Random choices, device memory and descriptions of tensors for fuzz.cc.
#pragma once

#include <algorithm>
#include <random>

#include "harness.h"

namespace {

std::mt19937_64 generator;

int64_t pick(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(generator); }
bool chance(int percent) { return pick(1, 100) <= percent; }
// In calls that are to be wrong: one mistake here and there.
bool wrong = false;
bool slip(int percent) { return wrong && chance(percent); }
template <typename T, size_t N>
T one_of(const T (&values)[N]) {
  return values[pick(0, N - 1)];
}

const aclDataType kDtypes[] = {ACL_FLOAT, ACL_FLOAT16, ACL_BF16,   ACL_DOUBLE,    ACL_INT8,        ACL_INT16,
                               ACL_INT32, ACL_INT64,   ACL_UINT8,  ACL_UINT16,    ACL_UINT32,      ACL_UINT64,
                               ACL_BOOL,  ACL_INT4,    ACL_STRING, ACL_COMPLEX64, ACL_DT_UNDEFINED};
const int64_t kHuge[] = {
    INT64_MAX, INT64_MAX / 2, int64_t{1} << 62, int64_t{1} << 40, int64_t{1} << 32, (int64_t{1} << 31) - 1, -1,
    INT64_MIN, 65536};

// Device memory of the size that random tensors have; much is left over so that most addresses are good.
struct Pool {
  std::vector<void*> blocks;
  Pool() {
    for (int i = 0; i < 6; ++i) {
      void* data = nullptr;
      EXPECT_OK(aclrtMalloc(&data, 100, ACL_MEM_MALLOC_HUGE_FIRST));
      std::vector<int32_t> values(1 << 14);  // all zero, or small, or anything
      const int kind = static_cast<int>(pick(0, 2));
      for (int32_t& value : values)
        value = static_cast<int32_t>(kind == 0 ? 0 : kind == 1 ? pick(-8, 7) : pick(INT32_MIN, INT32_MAX));
      const size_t bytes = values.size() * sizeof(int32_t);
      EXPECT_OK(aclrtMemcpy(data, bytes, values.data(), bytes, ACL_MEMCPY_HOST_TO_DEVICE));
      blocks.push_back(data);
    }
  }
  ~Pool() {
    for (void* block : blocks) EXPECT_OK(aclrtFree(block));
  }
};

struct Tensors {
  Pool& pool;
  std::vector<aclTensor*> made;
  int next_block = 0;

  explicit Tensors(Pool& blocks) : pool(blocks) {}
  Tensors(const Tensors&) = delete;
  ~Tensors() {
    for (aclTensor* tensor : made) aclDestroyTensor(tensor);
  }

  // Nothing is at the address of an empty tensor.
  void* address(bool empty) {
    static char host[64];
    static const std::vector<void*> odd = {nullptr, host, reinterpret_cast<void*>(16),
                                           reinterpret_cast<void*>(~uint64_t{0})};
    if (slip(empty ? 40 : 4)) return odd[pick(0, 3)];
    char* block = static_cast<char*>(pool.blocks[slip(10) ? pick(0, 5) : next_block++ % 6]);
    return slip(8) ? block + pick(0, 2 << 20) : block;
  }

  const aclTensor* random(std::vector<int64_t> shape, aclDataType dtype) {
    if (slip(2)) return nullptr;
    if (slip(1)) return reinterpret_cast<const aclTensor*>(pick(1, 1 << 20));
    if (slip(1) && !made.empty()) return made[pick(0, made.size() - 1)];
    if (slip(5)) dtype = one_of(kDtypes);
    if (slip(4)) shape.resize(pick(0, 8), pick(0, 5));
    for (int64_t& size : shape) {
      if (slip(2)) size = pick(0, 40);
      if (slip(1)) size = one_of(kHuge);
    }
    std::vector<int64_t> strides(shape.size());
    int64_t step = 1;
    for (size_t i = shape.size(); i-- > 0;) {
      strides[i] = step;
      step = static_cast<int64_t>(static_cast<uint64_t>(step) * static_cast<uint64_t>(shape[i] == 0 ? 1 : shape[i]));
    }
    const size_t rank = shape.size();
    if (rank >= 2 && chance(8)) {
      std::swap(strides[rank - 1], strides[rank - 2]);
      std::swap(shape[rank - 1], shape[rank - 2]);
    }
    const bool empty = std::find(shape.begin(), shape.end(), 0) != shape.end();
    for (int64_t& stride : strides) {
      if (slip(empty ? 20 : 3)) stride = chance(50) ? pick(-4, 40) : one_of(kHuge);
    }
    const auto format = static_cast<aclFormat>(chance(94) ? 2 : slip(40) ? pick(-1, 60) : 29);
    std::vector<int64_t> storage = shape;
    if (format == ACL_FORMAT_FRACTAL_NZ && rank >= 2 && !slip(20)) {
      const int64_t c0 = dtype == ACL_INT4 ? 64 : one_of({int64_t{8}, int64_t{16}, int64_t{32}});
      storage.resize(rank - 2);
      const uint64_t rows = static_cast<uint64_t>(shape[rank - 2]), columns = static_cast<uint64_t>(shape[rank - 1]);
      for (int64_t size :
           {static_cast<int64_t>((columns + c0 - 1) / c0), static_cast<int64_t>((rows + 15) / 16), int64_t{16}, c0}) {
        storage.push_back(slip(3) ? pick(0, 99) : size);
      }
    }
    const int64_t offset = slip(8) ? (chance(70) ? pick(-2, 64) : one_of(kHuge)) : 0;
    aclTensor* tensor = aclCreateTensor(shape.data(), rank, dtype, strides.data(), offset, format, storage.data(),
                                        storage.size(), address(empty));
    if (tensor != nullptr) made.push_back(tensor);
    return tensor;
  }
  const aclTensor* maybe(int percent, const std::vector<int64_t>& shape, aclDataType dtype) {
    return chance(percent) ? random(shape, dtype) : nullptr;
  }
  // Lists destroy their members, so the tensors here are not among those that are destroyed later.
  aclTensorList* list(const std::vector<std::vector<int64_t>>& shapes, aclDataType dtype) {
    std::vector<const aclTensor*> members;
    for (const std::vector<int64_t>& shape : shapes) {
      const aclTensor* tensor = random(shape, dtype);
      const auto at = std::find(made.begin(), made.end(), tensor);
      if (at == made.end()) continue;
      made.erase(at);
      members.push_back(tensor);
    }
    if (members.empty()) return nullptr;
    if (!slip(5)) return aclCreateTensorList(members.data(), members.size());
    for (const aclTensor* tensor : members) made.push_back(const_cast<aclTensor*>(tensor));
    return aclCreateTensorList(nullptr, 0);
  }
  aclTensor* output(const std::vector<int64_t>& shape, aclDataType dtype) {
    return const_cast<aclTensor*>(random(shape, dtype));
  }
};

}  // namespace
