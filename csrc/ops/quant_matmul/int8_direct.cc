// SPDX-License-Identifier: Apache-2.0
#include "ops/quant_matmul/int8_direct.h"

#include <algorithm>

#include "core/integer.h"
#include "core/parallel.h"
#include "core/scratch.h"
#include "ops/quant_matmul/int8_kernel.h"

namespace anynpu {
namespace {

constexpr int64_t kColumns = 128;        // of a task
constexpr int64_t kWideColumns = 16384;  // at once where k are shared out, so that their sums stay in the nearer caches
constexpr int64_t kParts = 4;            // of k a thread, so that a thread that is disturbed does less
constexpr int64_t kMostParts = 64;
constexpr int64_t kTaskBytes = 1 << 18;   // of the weight a thread; below it a second thread costs more than it gives
constexpr int64_t kFinishWork = 1 << 15;  // sums a thread, likewise

// Of `count` in as few parts of at most `most` as there can be.
int64_t even_part(int64_t count, int64_t most) { return ceil_divide(count, ceil_divide(count, most)); }

class Direct {
 public:
  Direct(const Int8Problem& problem, const WeightSource& weight)
      : problem_(problem),
        weight_(weight),
        by_k_(weight.order == WeightOrder::rows_of_k && weight.chunk_bytes == 0),
        padded_k_(round_up(problem.k, kDirectK)),
        threads_(thread_count(problem.k * problem.n, kTaskBytes)),
        part_k_(
            round_up(ceil_divide(problem.k, threads_ == 1 ? 1 : std::min(kParts * threads_, kMostParts)), kDirectK)),
        parts_(by_k_ ? ceil_divide(problem.k, part_k_) : threads_),
        columns_(by_k_ ? round_up(even_part(problem.n, kWideColumns), kPanelColumns) : kColumns) {}

  bool allocate() {
    const int64_t x_bytes = round_up(problem_.rows * padded_k_, 64);
    auto* memory = static_cast<uint8_t*>(
        scratch(ScratchSlot::main, static_cast<size_t>(x_bytes + parts_ * problem_.rows * columns_ * 4)));
    x_ = reinterpret_cast<int8_t*>(memory);
    sums_ = reinterpret_cast<int32_t*>(memory + x_bytes);
    return memory != nullptr;
  }

  void run() {
    for (int64_t row = 0; row < problem_.rows; ++row) copy_row(row);
    if (!by_k_) return run_by_columns();
    for (int64_t n = 0; n < problem_.n; n += columns_) run_by_k(n, std::min(columns_, problem_.n - n));
  }

 private:
  // With zeros beyond k.
  void copy_row(int64_t row) const {
    int8_t* to = x_ + row * padded_k_;
    const anynpu_tensor& view = *problem_.x_view;
    const int8_t* from = problem_.x + row_elements(view, row);
    const int64_t stride = view.strides[view.ndim - 1];
    if (stride == 1) {
      std::copy_n(from, problem_.k, to);
    } else {
      for (int64_t i = 0; i < problem_.k; ++i) to[i] = from[i * stride];
    }
    std::fill(to + problem_.k, to + padded_k_, int8_t{0});
  }

  int32_t* sums_of(int64_t part) const { return sums_ + part * problem_.rows * columns_; }

  void multiply(int64_t k, int64_t k_count, int64_t n, int64_t n_count, int32_t* sums) const {
    int8_kernel(problem_.rows).direct({&weight_, k, k_count, n, n_count, x_, padded_k_, problem_.rows, sums, columns_});
  }

  void run_by_columns() const {
    parallel_tasks(threads_, ceil_divide(problem_.n, columns_), [&](int64_t task, int64_t thread) {
      const int64_t n = task * columns_, count = std::min(columns_, problem_.n - n);
      multiply(0, problem_.k, n, count, sums_of(thread));
      store_int8_sums(problem_, {sums_of(thread), columns_, nullptr, 0, problem_.rows, n, count});
    });
  }

  // Whole rows of k one after the other are what the memory likes best; their sums are added up in the end.
  void run_by_k(int64_t n, int64_t count) const {
    parallel_tasks(threads_, parts_, [&](int64_t part, int64_t) {
      const int64_t k = part * part_k_;
      multiply(k, std::min(part_k_, problem_.k - k), n, count, sums_of(part));
    });
    const int64_t grain = std::max<int64_t>(1, kFinishWork / (parts_ * problem_.rows * kColumns));
    parallel_for(ceil_divide(count, kColumns), grain, [&](int64_t begin, int64_t end) {
      finish(n, begin * kColumns, std::min(end * kColumns, count) - begin * kColumns);
    });
  }

  void finish(int64_t n, int64_t first, int64_t count) const {
    for (int64_t row = 0; row < problem_.rows; ++row) {
      int32_t* sums = sums_of(0) + row * columns_ + first;
      for (int64_t part = 1; part < parts_; ++part) {
        const int32_t* more = sums_of(part) + row * columns_ + first;
        for (int64_t i = 0; i < count; ++i) sums[i] += more[i];
      }
    }
    store_int8_sums(problem_, {sums_of(0) + first, columns_, nullptr, 0, problem_.rows, n + first, count});
  }

  const Int8Problem& problem_;
  const WeightSource& weight_;
  const bool by_k_;
  const int64_t padded_k_, threads_;
  const int64_t part_k_, parts_;  // that have sums of their own: parts of k, or else threads
  const int64_t columns_;
  int8_t* x_ = nullptr;
  int32_t* sums_ = nullptr;
};

}  // namespace

int64_t most_direct_rows(const WeightSource& weight) {
  if (weight.order == WeightOrder::rows_of_k) return int8_kernel(1).direct_rows_of_k;
  return weight.order == WeightOrder::rows_of_n && weight.chunk_bytes == 0 ? int8_kernel(1).direct_rows_of_n : 0;
}

int32_t run_int8_direct(const char* op, const Int8Problem& problem, const WeightSource& weight) {
  Direct direct(problem, weight);
  if (!direct.allocate()) return fail(ANYNPU_NO_MEMORY, "%s: no memory for x and the sums", op);
  direct.run();
  return ANYNPU_OK;
}

}  // namespace anynpu
