// SPDX-License-Identifier: Apache-2.0
#include "ops/grouped_matmul_combine/direct_sums.h"

#include <algorithm>

#include "core/integer.h"
#include "core/parallel.h"
#include "ops/quant_matmul/int8_direct.h"
#include "ops/quant_matmul/int8_kernel.h"

namespace anynpu {
namespace {

constexpr int64_t kMostSums = 1 << 20;   // of all rows
constexpr int64_t kApart = 16;           // between rows of sums, which so do not all fall to the same lines of a cache
constexpr int64_t kColumns = 128;        // of a task that does not own parts of k
constexpr int64_t kTasks = 4;            // a thread, so that a thread that is disturbed does less
constexpr int64_t kTaskBytes = 1 << 18;  // of weights a thread; below it a second thread costs more than it gives

int64_t part_of_k(int64_t k, int64_t threads, int64_t experts) {
  const int64_t parts = threads == 1 ? 1 : ceil_divide(kTasks * threads, std::max<int64_t>(1, experts));
  return round_up(ceil_divide(k, parts), kDirectK);
}

}  // namespace

DirectSums::DirectSums(const CombineProblem& problem, int64_t most_each, int64_t rows, int64_t experts)
    : problem_(problem),
      most_each_(problem.int4() ? 0 : std::min(most_each, most_direct_rows(problem.weight.source))),
      by_k_(problem.weight.source.order == WeightOrder::rows_of_k && problem.weight.source.chunk_bytes == 0),
      stride_(round_up(problem.n, kPanelColumns) + kApart),
      most_rows_(most_each_ == 0 ? 0 : std::min(rows, kMostSums / std::max(kPanelColumns, stride_))),
      threads_(thread_count(experts * problem.k * problem.n, kTaskBytes)),
      part_k_(by_k_ ? part_of_k(problem.k, threads_, experts) : problem.k),
      parts_(ceil_divide(problem.k, part_k_)) {}

int64_t DirectSums::take(int64_t rows) {
  if (rows > most_each_ || taken_ + rows > most_rows_) return -1;
  taken_ += rows;
  return taken_ - rows;
}

void DirectSums::multiply(const Piece* pieces, int64_t count, const PackedRows& packed) const {
  if (taken_ == 0) return;
  const int64_t parts = by_k_ ? parts_ : ceil_divide(problem_.n, kColumns);
  parallel_tasks(threads_, count * parts, [&](int64_t task, int64_t) {
    if (pieces[task / parts].direct >= 0) multiply_part(pieces[task / parts], task % parts, packed);
  });
}

void DirectSums::multiply_part(const Piece& piece, int64_t part, const PackedRows& packed) const {
  const int64_t k = by_k_ ? part * part_k_ : 0, n = by_k_ ? 0 : part * kColumns;
  const int64_t columns = by_k_ ? problem_.n : std::min(kColumns, problem_.n - n);
  const WeightSource weight = problem_.expert_weight(piece.expert);
  int8_kernel(piece.rows)
      .direct({&weight, k, std::min(part_k_, problem_.k - k), n, columns,
               reinterpret_cast<const int8_t*>(packed.tiles(piece)), 4 * packed.row_steps(), piece.rows,
               sums_of(by_k_ ? part : 0, piece.direct) + n, stride_});
}

void DirectSums::add(const Piece& piece, int64_t row, int64_t column, int64_t columns, int32_t* sums) const {
  for (int64_t part = 0; part < parts_; ++part) {
    const int32_t* from = sums_of(part, piece.direct + row) + column;
    for (int64_t i = 0; i < columns; ++i) sums[i] += from[i];
  }
}

}  // namespace anynpu
