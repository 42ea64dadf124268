// SPDX-License-Identifier: Apache-2.0
#include "ops/quant_matmul/int8_gemm.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <new>

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
constexpr int64_t kCellColumns = 32, kCellBytes = 128;  // of w8p32, four k
constexpr int64_t kPackWork = 1 << 15;                  // values of x a thread
// With so many columns a thread, and no more bytes of x, every thread packs x for itself: what another one has packed comes
// out of its caches, slowly where the two share none, and after a barrier.
constexpr int64_t kOwnColumns = 512;
constexpr int64_t kOwnBytes = 1 << 20;
constexpr int64_t kStreamTiles = 3;  // of rows of x: cells that more of them meet are fetched ahead

class Gemm {
 public:
  Gemm(const Int8Problem& problem, const PanelSource& weight)
      : problem_(problem),
        weight_(weight),
        cells_(cells_of(weight)),
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
    if (streams()) span_ = std::max(span_, kernel_.stream_k);
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
    own_rows_ = threads_ == 1 || (problem_.n >= kOwnColumns * threads_ && packed <= kOwnBytes);
    const int64_t copies = own_rows_ ? threads_ : 1;
    auto* memory = static_cast<uint8_t*>(
        scratch(ScratchSlot::main, static_cast<size_t>(copies * (packed + compensation) + threads_ * (panels + sums))));
    if (memory == nullptr) return false;
    workers_.reset(new (std::nothrow) Worker[threads_]);
    if (!workers_) return false;
    for (int64_t i = 0; i < threads_; ++i) {
      if (i < copies) {
        workers_[i].rows = {reinterpret_cast<int32_t*>(memory), reinterpret_cast<int32_t*>(memory + packed)};
        memory += packed + compensation;
      } else {
        workers_[i].rows = workers_[0].rows;
      }
      workers_[i].panels = memory;
      workers_[i].sums = reinterpret_cast<int32_t*>(memory + panels);
      memory += panels + sums;
    }
    return true;
  }

  bool run() {
    for (int64_t first = 0; first < problem_.rows && !damaged_.load(); first += chunk_rows_) {
      const int64_t rows = std::min(chunk_rows_, problem_.rows - first);
      if (!own_rows_) pack_together(first, rows);
      multiply(first, rows);
    }
    return !damaged_.load();
  }

 private:
  // The rows of a chunk as products read them.
  struct PackedRows {
    int32_t* x;
    int32_t* compensation;
  };

  // What a thread works with.
  struct alignas(64) Worker {
    PackedRows rows;
    uint8_t* panels;
    int32_t* sums;
    int64_t packed = -1;  // first row of the chunk that it has packed for itself
  };

  // Prepacked weights, whose cells are read where they lie, or null.
  static const WeightSource* cells_of(const PanelSource& weight) {
    const WeightSource* plain = weight.plain();
    return plain != nullptr && plain->order == WeightOrder::packed32 ? plain : nullptr;
  }
  // Whether memory is read as products go on, in runs as long as they take.
  bool streams() const { return cells_ != nullptr && chunk_rows_ <= kStreamTiles * kernel_.tile_rows; }

  int64_t panel_bytes() const { return cells_ != nullptr ? 0 : columns_ * span_; }

  // Row `row` of a chunk, a unit of kUnit steps after the other, beside the other rows of its tile; zeros beyond k.
  template <int64_t kUnit>
  void pack_row(int64_t first, int64_t row, int64_t rows, const PackedRows& packed) const {
    const int64_t tile = row / kernel_.tile_rows * kernel_.tile_rows;
    const int64_t height = std::min(kernel_.tile_rows, rows - tile);
    int32_t* to = packed.x + tile * row_steps_;
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
    packed.compensation[row] = 128 * sum_of(from, stride, k);
  }

  int32_t sum_of(const int8_t* from, int64_t stride, int64_t count) const {
    if (stride == 1) return kernel_.sum(from, count);
    int32_t sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += from[i * stride];
    return sum;
  }

  void pack(int64_t first, int64_t begin, int64_t end, int64_t rows, const PackedRows& packed) const {
    for (int64_t row = begin; row < end; ++row) {
      kernel_.unit_steps == 1 ? pack_row<1>(first, row, rows, packed) : pack_row<kUnitSteps>(first, row, rows, packed);
    }
  }

  void pack_together(int64_t first, int64_t rows) const {
    parallel_for(rows, std::max<int64_t>(1, kPackWork / problem_.k),
                 [&](int64_t begin, int64_t end) { pack(first, begin, end, rows, workers_[0].rows); });
  }

  void multiply(int64_t first, int64_t rows) {
    parallel_tasks(threads_, column_tasks_ * ceil_divide(rows, part_rows_), [&](int64_t task, int64_t thread) {
      Worker& worker = workers_[thread];
      if (own_rows_ && worker.packed != first) {
        pack(first, 0, rows, rows, worker.rows);
        worker.packed = first;
      }
      const int64_t row = task / column_tasks_ * part_rows_;
      multiply_block(first, row, std::min(part_rows_, rows - row), task % column_tasks_ * columns_, worker);
    });
  }

  // A share of the weights that are unpacked next: most likely those, where threads take turns.
  Int8Ahead ahead(WeightPart part, int64_t share, int64_t shares) const {
    if (weight_.plain() == nullptr || streams()) return {};
    part.k += part.k_count;
    if (part.k >= problem_.k) {
      part.k = 0;
      part.n += columns_;
    }
    if (part.n >= problem_.n) return {};
    part.k_count = std::min(span_, problem_.k - part.k);
    part.n_count = std::min(columns_, problem_.n - part.n);
    Int8Ahead runs = cells_ != nullptr ? runs_of_cells(part) : runs_of(*weight_.plain(), part);
    const int64_t first = runs.runs * share / shares, last = runs.runs * (share + 1) / shares;
    runs.at += first * runs.apart;
    runs.runs = last - first;
    return runs;
  }

  static Int8Ahead runs_of(const WeightSource& weight, const WeightPart& part) {
    const bool along_n = weight.order == WeightOrder::rows_of_k, plain = weight.chunk_bytes == 0;
    const int64_t row = along_n ? part.k : part.n, rows = along_n ? part.k_count : part.n_count;
    const int64_t element = along_n ? part.n : part.k, elements = along_n ? part.n_count : part.k_count;
    const uint8_t* at =
        weight.data + element / weight.chunk * weight.chunk_bytes + row * weight.row_bytes + element % weight.chunk;
    if (plain) return {at, weight.row_bytes, elements, rows};
    return {at, weight.chunk_bytes, rows * weight.row_bytes, ceil_divide(elements, weight.chunk)};
  }

  Int8Ahead runs_of_cells(const WeightPart& part) const {
    return {cells_at(part.k, part.n), strip_bytes(), part.k_count / 4 * kCellBytes,
            ceil_divide(part.n_count, kCellColumns)};
  }
  int64_t strip_bytes() const { return ceil_divide(problem_.k, 4) * kCellBytes; }
  const uint8_t* cells_at(int64_t k, int64_t n) const {
    return cells_->data + n / kCellColumns * strip_bytes() + k / 4 * kCellBytes;
  }

  // Panel `index` of a part, which lies in `panels` unless it is read in place.
  Panel panel_of(const WeightPart& part, int64_t index, const uint8_t* panels) const {
    const int64_t first = index * kPanelColumns;
    if (cells_ == nullptr) return {panels + first * ceil_divide(part.k_count, 4) * 4};
    const bool whole = part.n_count - first > kCellColumns;  // else the first half stands for the second one too
    return {cells_at(part.k, part.n + first), kCellBytes, whole ? strip_bytes() : 0};
  }

  void multiply_block(int64_t first, int64_t row, int64_t rows, int64_t column, const Worker& worker) {
    const int64_t columns = std::min(columns_, problem_.n - column);
    for (int64_t k = 0; k < problem_.k; k += span_) {
      const WeightPart part = {k, std::min(span_, problem_.k - k), column, columns};
      codec::Nibbles nibbles = {};
      const bool may_be_nibbles = rows == 1 && kernel_.multiply_nibbles != nullptr;
      if (cells_ == nullptr &&
          !(may_be_nibbles ? weight_.fill_nibbles(part, worker.panels, &nibbles) : weight_.fill(part, worker.panels))) {
        damaged_.store(true);
        return;
      }
      for (int64_t i = 0; i < rows; i += product_rows_) {
        const int64_t count = std::min(product_rows_, rows - i);
        int32_t* c = worker.sums + i % sum_rows_ * columns_;
        if (k == 0) std::fill_n(c, count * columns_, 0);
        if (k + span_ >= problem_.k) fetch_result(first + row + i, count, column, columns);
        multiply_panels(part, worker, &nibbles, {row, i, rows, count}, c);
        if (k + span_ < problem_.k) continue;
        store_int8_sums(problem_,
                        {c, columns_, worker.rows.compensation + row + i, first + row + i, count, column, columns});
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

  void multiply_panels(const WeightPart& part, const Worker& worker, codec::Nibbles* nibbles, const Rows& rows,
                       int32_t* c) const {
    const int64_t steps = ceil_divide(part.k_count, 4), count = ceil_divide(part.n_count, kPanelColumns);
    const int64_t shares = ceil_divide(rows.part_rows, product_rows_) * count;
    const int64_t row = rows.part + rows.first;
    for (int64_t panel = 0; panel < count; ++panel) {
      const Int8Product product = {panel_of(part, panel, worker.panels),
                                   worker.rows.x + row * row_steps_,
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
  const WeightSource* cells_;
  const Int8Kernel& kernel_;
  int64_t row_steps_, chunk_rows_, columns_, span_ = kSpan, column_tasks_, threads_, part_rows_, row_tasks_;
  int64_t product_rows_, sum_rows_;
  bool own_rows_ = false;  // each thread packs them for itself
  std::unique_ptr<Worker[]> workers_;
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
