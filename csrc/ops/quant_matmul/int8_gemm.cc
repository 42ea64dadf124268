// SPDX-License-Identifier: Apache-2.0
#include "ops/quant_matmul/int8_gemm.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "core/integer.h"
#include "core/parallel.h"
#include "core/scratch.h"
#include "ops/quant_matmul/int8_direct.h"
#include "ops/quant_matmul/int8_kernel.h"

namespace anynpu {
namespace {

constexpr int64_t kRowsAtOnce = 528;    // rows of x packed at once: whole tiles of every tier, and more than 512
constexpr int64_t kColumns = 128;       // of a task
constexpr int64_t kTaskWork = 1 << 18;  // products a thread; below it a second thread costs more than it gives
constexpr int64_t kPackWork = 1 << 15;  // values of x a thread

class Gemm {
 public:
  Gemm(const Int8Problem& problem, const PanelSource& weight)
      : problem_(problem),
        weight_(weight),
        kernel_(int8_kernel(problem.rows)),
        row_steps_(round_up(ceil_divide(problem.k, 4), kernel_.unit_steps)) {
    // In even parts, because each of them unpacks or decodes the whole weight.
    const int64_t chunks = std::max<int64_t>(1, ceil_divide(problem.rows, kRowsAtOnce));
    chunk_rows_ = std::min(problem.rows, round_up(ceil_divide(problem.rows, chunks), kernel_.tile_rows));
    const double work =
        static_cast<double>(problem.k) * static_cast<double>(problem.n) * static_cast<double>(chunk_rows_);
    threads_ = thread_count(static_cast<int64_t>(std::min(work, 1e15)), kTaskWork);
    const int64_t cached = kernel_.wide_sums / chunk_rows_ / kColumns * kColumns;
    columns_ =
        std::max(kColumns, std::min({weight_.wide(), cached, round_up(ceil_divide(problem.n, threads_), kColumns)}));
    const int64_t span_unit = std::max<int64_t>(32, 4 * kernel_.unit_steps);
    span_ = std::min(kColumns * kernel_.panel_k / columns_, weight_.deep()) / span_unit * span_unit;
    column_tasks_ = ceil_divide(problem.n, columns_);
    // With few columns the rows are split too: then every part decodes or unpacks the same weights once more.
    const int64_t parts = column_tasks_ >= threads_ ? 1 : ceil_divide(threads_, column_tasks_);
    part_rows_ = round_up(ceil_divide(chunk_rows_, parts), kernel_.tile_rows);
    row_tasks_ = ceil_divide(chunk_rows_, part_rows_);
    product_rows_ = std::min(part_rows_, kernel_.product_rows);
    sum_rows_ = problem.k <= span_ ? product_rows_ : part_rows_;
    threads_ = std::min(threads_, column_tasks_ * row_tasks_);
  }

  bool allocate() {
    const int64_t packed = round_up(chunk_rows_ * row_steps_ * 4, 64), compensation = round_up(chunk_rows_ * 4, 64);
    const int64_t panels = panel_bytes(), sums = round_up(sum_rows_ * columns_ * 4, 64);
    auto* memory = static_cast<uint8_t*>(
        scratch(ScratchSlot::main, static_cast<size_t>(packed + compensation + threads_ * (panels + sums))));
    if (memory == nullptr) return false;
    packed_ = reinterpret_cast<int32_t*>(memory);
    compensation_ = reinterpret_cast<int32_t*>(memory + packed);
    thread_memory_ = memory + packed + compensation;
    thread_bytes_ = panels + sums;
    return true;
  }

  bool run() {
    for (int64_t first = 0; first < problem_.rows && !damaged_.load(); first += chunk_rows_) {
      const int64_t rows = std::min(chunk_rows_, problem_.rows - first);
      pack(first, rows);
      multiply(first, rows);
    }
    return !damaged_.load();
  }

 private:
  int64_t panel_bytes() const { return columns_ * span_; }

  // Row `row` of a chunk, a unit of kUnit steps after the other, beside the other rows of its tile; zeros beyond k.
  template <int64_t kUnit>
  void pack_row(int64_t first, int64_t row, int64_t rows) {
    const int64_t tile = row / kernel_.tile_rows * kernel_.tile_rows;
    const int64_t height = std::min(kernel_.tile_rows, rows - tile);
    int32_t* to = packed_ + tile * row_steps_;
    const anynpu_tensor& view = *problem_.x_view;
    const int8_t* from = problem_.x + row_elements(view, first + row);
    const int64_t stride = view.strides[view.ndim - 1], k = problem_.k;
    int64_t step = 0;
    for (; stride == 1 && 4 * (step + kUnit) <= k; step += kUnit) {
      std::memcpy(to + step * height + (row - tile) * kUnit, from + 4 * step, 4 * kUnit);
    }
    for (; step < row_steps_; step += kUnit) {
      const int64_t end = std::min(k, 4 * (step + kUnit));
      int8_t values[4 * kUnit] = {};
      for (int64_t i = 4 * step; i < end; ++i) values[i - 4 * step] = from[i * stride];
      std::memcpy(to + step * height + (row - tile) * kUnit, values, 4 * kUnit);
    }
    compensation_[row] = 128 * sum_of(from, stride, k);
  }

  int32_t sum_of(const int8_t* from, int64_t stride, int64_t count) const {
    if (stride == 1) return kernel_.sum(from, count);
    int32_t sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += from[i * stride];
    return sum;
  }

  void pack(int64_t first, int64_t rows) {
    parallel_for(rows, std::max<int64_t>(1, kPackWork / problem_.k), [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        kernel_.unit_steps == 1 ? pack_row<1>(first, row, rows) : pack_row<kUnitSteps>(first, row, rows);
      }
    });
  }

  void multiply(int64_t first, int64_t rows) {
    parallel_tasks(threads_, column_tasks_ * ceil_divide(rows, part_rows_), [&](int64_t task, int64_t thread) {
      const int64_t row = task / column_tasks_ * part_rows_;
      multiply_block(first, row, std::min(part_rows_, rows - row), task % column_tasks_ * columns_,
                     thread_memory_ + thread * thread_bytes_);
    });
  }

  // A share of the weights that are unpacked next: most likely those, where threads take turns.
  Int8Ahead ahead(WeightPart part, int64_t share, int64_t shares) const {
    const WeightSource* weight = weight_.plain();
    part.k += part.k_count;
    if (part.k >= problem_.k) {
      part.k = 0;
      part.n += threads_ * columns_;
    }
    if (weight == nullptr || part.n >= problem_.n) return {};
    part.k_count = std::min(span_, problem_.k - part.k);
    part.n_count = std::min(columns_, problem_.n - part.n);
    const bool along_n = weight->order == WeightOrder::rows_of_k;
    const int64_t row = along_n ? part.k : part.n, rows = along_n ? part.k_count : part.n_count;
    const int64_t element = along_n ? part.n : part.k, elements = along_n ? part.n_count : part.k_count;
    const uint8_t* at = weight->data + element / weight->chunk * weight->chunk_bytes + row * weight->row_bytes +
                        element % weight->chunk;
    const bool plain = weight->chunk_bytes == 0;
    const int64_t apart = plain ? weight->row_bytes : weight->chunk_bytes;
    const int64_t runs = plain ? rows : ceil_divide(elements, weight->chunk);
    const int64_t first = runs * share / shares, last = runs * (share + 1) / shares;
    return {at + first * apart, apart, plain ? elements : rows * weight->row_bytes, last - first};
  }

  void multiply_block(int64_t first, int64_t row, int64_t rows, int64_t column, uint8_t* memory) {
    const int64_t columns = std::min(columns_, problem_.n - column);
    int32_t* sums = reinterpret_cast<int32_t*>(memory + panel_bytes());
    for (int64_t k = 0; k < problem_.k; k += span_) {
      const WeightPart part = {k, std::min(span_, problem_.k - k), column, columns};
      codec::Nibbles nibbles = {};
      const bool may_be_nibbles = rows == 1 && kernel_.multiply_nibbles != nullptr;
      if (!(may_be_nibbles ? weight_.fill_nibbles(part, memory, &nibbles) : weight_.fill(part, memory))) {
        damaged_.store(true);
        return;
      }
      for (int64_t i = 0; i < rows; i += product_rows_) {
        const int64_t count = std::min(product_rows_, rows - i);
        int32_t* c = sums + i % sum_rows_ * columns_;
        if (k == 0) std::fill_n(c, count * columns_, 0);
        if (k + span_ >= problem_.k) fetch_result(first + row + i, count, column, columns);
        multiply_panels(part, memory, &nibbles, {row, i, rows, count}, c);
        if (k + span_ < problem_.k) continue;
        store_int8_sums(problem_, {c, columns_, compensation_ + row + i, first + row + i, count, column, columns});
      }
    }
  }

  // Brings near the part of the result that is stored next.
  void fetch_result(int64_t row, int64_t rows, int64_t column, int64_t columns) const {
    const int64_t element = dtype_bits(problem_.y_dtype) / 8;
    const auto* at = static_cast<const uint8_t*>(problem_.y) + (row * problem_.n + column) * element;
    for (const uint8_t* end = at + rows * problem_.n * element; at < end; at += problem_.n * element) {
      for (int64_t byte = 0; byte < columns * element; byte += 64) __builtin_prefetch(at + byte, 1);
    }
  }

  // Rows [first, first + count) of the part of `part_rows` rows that begins with row `part`.
  struct Rows {
    int64_t part;
    int64_t first;
    int64_t part_rows;
    int64_t count;
  };

  void multiply_panels(const WeightPart& part, const uint8_t* panels, codec::Nibbles* nibbles, const Rows& rows,
                       int32_t* c) const {
    const int64_t steps = ceil_divide(part.k_count, 4), count = ceil_divide(part.n_count, kPanelColumns);
    const int64_t shares = ceil_divide(rows.part_rows, product_rows_) * count;
    const int64_t row = rows.part + rows.first;
    for (int64_t panel = 0; panel < count; ++panel) {
      const Int8Product product = {panels + panel * steps * kPanelColumns * 4,
                                   packed_ + row * row_steps_,
                                   c + panel * kPanelColumns,
                                   rows.count,
                                   part.k / 4,
                                   steps,
                                   row_steps_,
                                   columns_,
                                   ahead(part, rows.first / product_rows_ * count + panel, shares)};
      if (nibbles->classes == nullptr) {
        kernel_.multiply(product);
      } else {
        kernel_.multiply_nibbles({product, *nibbles});
        nibbles->classes += steps * kPanelColumns * 2;
        nibbles->bits += steps * kPanelColumns * 2;
        nibbles->next += steps * kPanelColumns * 2;
      }
    }
  }

  const Int8Problem& problem_;
  const PanelSource& weight_;
  const Int8Kernel& kernel_;
  int64_t row_steps_, chunk_rows_, columns_, span_ = kSpan, column_tasks_, threads_, part_rows_, row_tasks_;
  int64_t product_rows_, sum_rows_;
  int64_t thread_bytes_ = 0;
  int32_t* packed_ = nullptr;
  int32_t* compensation_ = nullptr;
  uint8_t* thread_memory_ = nullptr;
  std::atomic<bool> damaged_{false};
};

}  // namespace

int32_t run_int8_gemm(const char* op, const Int8Problem& problem, const PanelSource& weight) {
  const WeightSource* plain = weight.plain();
  if (plain != nullptr && problem.rows <= most_direct_rows(*plain)) return run_int8_direct(op, problem, *plain);
  Gemm gemm(problem, weight);
  if (!gemm.allocate()) return fail(ANYNPU_NO_MEMORY, "%s: no memory for the packed x", op);
  return gemm.run() ? ANYNPU_OK : ANYNPU_BAD_VALUE;
}

}  // namespace anynpu
