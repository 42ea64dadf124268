// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <new>

// Of libgomp, whose functions torch calls too. GCC makes GOMP_parallel of a pragma; Clang would call another runtime.
extern "C" {
int omp_in_parallel() noexcept;
int omp_get_max_threads() noexcept;
int omp_get_num_threads() noexcept;
int omp_get_thread_num() noexcept;
void GOMP_parallel(void (*function)(void*), void* data, unsigned threads, unsigned flags) noexcept;
}

namespace anynpu {

// How many threads a loop over `count` items of at least `grain` items a thread uses.
inline int thread_count(int64_t count, int64_t grain) {
  if (count <= grain || omp_in_parallel()) return 1;
  return static_cast<int>(std::min<int64_t>(omp_get_max_threads(), (count + grain - 1) / grain));
}

// Calls fn(begin, end) on disjoint contiguous ranges that cover [0, count), on the OpenMP threads that torch uses too.
template <typename Function>
void parallel_for(int64_t count, int64_t grain, const Function& fn) {
  const int threads = thread_count(count, grain);
  if (threads <= 1) {
    if (count > 0) fn(int64_t{0}, count);
    return;
  }
  auto share = [count, &fn] {
    const int64_t used = omp_get_num_threads();
    const int64_t index = omp_get_thread_num();
    const int64_t begin = count * index / used;
    const int64_t end = count * (index + 1) / used;
    if (begin < end) fn(begin, end);
  };
  GOMP_parallel([](void* run) noexcept { (*static_cast<decltype(share)*>(run))(); }, &share, threads, 0);
}

// Calls fn(begin, end, thread) for runs that cover [0, count), of length(begin) items or fewer. Each of `threads` threads begins
// with neighbouring items of its own, the same ones in every call, so that what it wrote last time is in its caches; then it
// takes what others have left, so that a thread that the machine disturbs does less.
template <typename Length, typename Function>
void parallel_runs(int64_t threads, int64_t count, const Length& length, const Function& fn) {
  struct alignas(64) Share {
    std::atomic<int64_t> next;
    int64_t end;
  };
  const std::unique_ptr<Share[]> shares(threads > 1 ? new (std::nothrow) Share[threads] : nullptr);
  if (!shares) {  // one thread, or no memory for more
    for (int64_t begin = 0, end; begin < count; begin = end) {
      end = std::min(count, begin + length(begin));
      fn(begin, end, int64_t{0});
    }
    return;
  }
  for (int64_t i = 0; i < threads; ++i) {
    shares[i].next = count * i / threads;
    shares[i].end = count * (i + 1) / threads;
  }
  const auto run_share = [&](Share& share, int64_t thread) {
    for (int64_t begin = share.next; begin < share.end; begin = share.next) {
      const int64_t end = std::min(share.end, begin + length(begin));
      if (share.next.compare_exchange_strong(begin, end)) fn(begin, end, thread);
    }
  };
  parallel_for(threads, 1, [&](int64_t first, int64_t last) {
    for (int64_t thread = first; thread < last; ++thread) {
      for (int64_t i = 0; i < threads; ++i) run_share(shares[(thread + i) % threads], thread);
    }
  });
}

// Calls fn(task, thread) for every task, likewise.
template <typename Function>
void parallel_tasks(int64_t threads, int64_t tasks, const Function& fn) {
  parallel_runs(
      threads, tasks, [](int64_t) { return int64_t{1}; },
      [&](int64_t task, int64_t, int64_t thread) { fn(task, thread); });
}

}  // namespace anynpu
