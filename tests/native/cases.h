// SPDX-License-Identifier: Apache-2.0
// What the test programs of the flat ABI share: random numbers, tensors, calls with each number of threads.
#pragma once

#include <omp.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "anynpu.h"

inline std::mt19937_64 generator;

inline int64_t pick(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(generator); }
inline bool chance(int percent) { return pick(1, 100) <= percent; }

inline void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "failed: %s (%s)\n", what, anynpu_last_error());
  std::exit(1);
}

// A contiguous tensor in memory of its exact size.
template <typename T>
struct Tensor {
  anynpu_tensor view{};
  std::unique_ptr<T[]> data;
  int64_t count = 1;

  Tensor() = default;
  Tensor(int32_t dtype, std::vector<int64_t> shape) {
    for (const int64_t size : shape) count *= size;
    data.reset(new T[count]());
    view.data = data.get();
    view.dtype = dtype;
    view.format = ANYNPU_ND;
    view.ndim = static_cast<int32_t>(shape.size());
    int64_t stride = 1;
    for (int axis = view.ndim - 1; axis >= 0; --axis) {
      view.shape[axis] = shape[axis];
      view.strides[axis] = stride;
      stride *= shape[axis];
    }
  }
  Tensor& fill(double low, double high) {
    for (int64_t i = 0; i < count; ++i)
      data[i] = static_cast<T>(std::uniform_real_distribution<>(low, high)(generator));
    return *this;
  }
};

// Runs with 1, 2 and 3 threads from the same start; all must leave the same bytes.
template <typename Args, typename... Outputs>
void run_on_threads(int32_t (*run)(const Args*, void*, size_t), const Args& args, Outputs&... outputs) {
  const auto bytes_of = [&] {
    std::vector<char> bytes;
    (bytes.insert(bytes.end(), reinterpret_cast<char*>(outputs.data.get()),
                  reinterpret_cast<char*>(outputs.data.get() + outputs.count)),
     ...);
    return bytes;
  };
  const std::vector<char> before = bytes_of();
  std::vector<char> first;
  for (int threads = 1; threads <= 3; ++threads) {
    size_t at = 0;
    const auto restore = [&](auto& output) {
      const size_t size = output.count * sizeof(output.data[0]);
      if (size > 0) std::memcpy(output.data.get(), before.data() + at, size);
      at += size;
    };
    (restore(outputs), ...);
    omp_set_num_threads(threads);
    require(run(&args, nullptr, 0) == ANYNPU_OK, "call");
    if (threads == 1)
      first = bytes_of();
    else
      require(first == bytes_of(), "the same bits for any number of threads");
  }
}
