// SPDX-License-Identifier: Apache-2.0
#include "ops/grouped_matmul_combine/grouped_matmul_combine.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>

#include "core/carver.h"
#include "core/integer.h"
#include "core/parallel.h"
#include "core/scratch.h"
#include "gemm/gemm.h"
#include "ops/grouped_matmul_combine/direct_sums.h"
#include "ops/grouped_matmul_combine/kernel.h"
#include "ops/grouped_matmul_combine/packed_rows.h"

namespace anynpu {

#define ANYNPU_KERNEL(tier) extern const CombineKernel combine_##tier;
#include "ops/grouped_matmul_combine/kernels.def"
#undef ANYNPU_KERNEL

namespace {

constexpr const CombineKernel* kKernels[] = {
#define ANYNPU_KERNEL(tier) &combine_##tier,
#include "ops/grouped_matmul_combine/kernels.def"
#undef ANYNPU_KERNEL
};

constexpr const char* kOp = "grouped_matmul_combine";
constexpr int64_t kCachedSums = 16384;      // of a task, if it is wider than kColumns
constexpr int64_t kDeepSums = 65536;        // likewise, of kernels that go through all k of an expert
constexpr int64_t kColumns = 128;           // of a task at least: whole cache lines of int4 weights
constexpr int64_t kSharedValues = 1 << 20;  // of all rows, so few that threads may share the experts
constexpr int64_t kHalvedRows = 8;          // of an expert, of whose k threads may share
constexpr int64_t kUnitOfK = 64;            // of parts of k: a multiple of the blocks of a kernel
constexpr int64_t kPieceRows =
    240;  // of one expert that share an unpacked weight, so that their sums stay in the cache
constexpr int64_t kRowBytes = 16 << 20;  // of x packed at once
constexpr int64_t kPieces = 1024;        // likewise
constexpr int64_t kMostGroup = 1 << 16;  // of k, whose sums are at most 1088 each, and kept 16 times as large
constexpr int64_t kTaskWork = 1 << 18;   // products a thread; below it a second thread costs more than it gives
constexpr int64_t kPackWork = 1 << 16;   // values of x a thread, likewise

// What a thread works in.
struct TaskMemory {
  bool* is_clear;        // whether the sums were set to zeros, which each group of k leaves behind
  uint8_t* panels;       // [columns][kSpan]
  int32_t* sums;         // [rows of a piece][columns]
  float* values;         // likewise
  int32_t* column_sums;  // [columns], of the weight
  int32_t* of_column;    // likewise
  float* scale;          // likewise
  float* scaled;         // as sums, if the kernel scales its products
};

// A task owns columns of y and goes through the experts in order: every element of y gets its rows in ascending order.
// Of few rows in all the experts' results are made first, by threads that own experts: memory is fastest when a thread
// reads whole rows of k.
class Combine {
 public:
  Combine(const CombineProblem& problem, const int64_t* group_ends, const int64_t* row_index)
      : problem_(problem),
        args_(*problem.args),
        group_ends_(group_ends),
        row_index_(row_index),
        rows_(problem.experts == 0 ? 0 : group_ends[problem.experts - 1]),
        kernel_(pick(kKernels)),
        int8_(int8_kernel(rows_ / std::max<int64_t>(1, experts_with_rows()))),
        own_product_(int8_.isa >= kernel_.isa && has_own_product(kernel_, problem)),
        scales_(own_product_ && kernel_.multiply_scaled_int4 != nullptr),
        own_int8_(int8_.isa >= kernel_.isa && has_int8_product(kernel_, problem)),
        tiles_(row_tiles()),
        groups_(scale_groups()),
        packed_(problem, tiles_, groups_, problem.int4() && (scales_ || !own_product_)),
        direct_(problem, own_int8_ ? kernel_.int8_least_rows - 1 : rows_, rows_, experts_with_rows()) {
    most_rows_ = std::min(rows_, std::max(kPieceRows, kRowBytes / problem.k));
    most_pieces_ = std::min(most_rows_, kPieces);
    const double work = static_cast<double>(rows_) * static_cast<double>(problem.k) * static_cast<double>(problem.n);
    threads_ = thread_count(static_cast<int64_t>(std::min(work, 1e15)), kTaskWork);
    share_experts_ = own_product_ && threads_ > 1 && rows_ <= most_rows_ && rows_ <= most_pieces_ &&
                     rows_ * problem.n <= kSharedValues;
    columns_ = most_columns();
    task_columns_ = share_experts_ ? round_up(ceil_divide(problem.n, threads_), kColumns) : columns_;
    const int64_t span_unit = std::max<int64_t>(32, 4 * int8_.unit_steps);
    const int64_t most_k = std::min(int8_.panel_k, kernel_.unpacking.panel_bytes / columns_);
    span_ = std::max(span_unit, most_k / span_unit * span_unit);
    tasks_ = ceil_divide(problem.n, task_columns_);
    threads_ = std::min(threads_, tasks_);
  }

  bool allocate() {
    const int64_t packed_rows = most_rows_ + most_pieces_;
    const int64_t pieces = round_up(most_pieces_ * static_cast<int64_t>(sizeof(Piece)), 64);
    const int64_t packed = round_up(packed_.bytes(packed_rows), 64);
    sums_ = (std::min(most_rows_, kPieceRows) + 1) * columns_;
    const int64_t values = share_experts_ ? (scales_ ? 2 : 1) * rows_ * problem_.n * 4 : direct_.bytes();
    Carver counter(0);
    carve(&counter);
    thread_bytes_ = counter.used();
    auto* memory = static_cast<uint8_t*>(
        scratch(ScratchSlot::main, static_cast<size_t>(pieces + packed + values + threads_ * thread_bytes_)));
    if (memory == nullptr) return false;
    pieces_ = reinterpret_cast<Piece*>(memory);
    packed_.use(memory + pieces, packed_rows);
    shared_values_ = reinterpret_cast<float*>(memory + pieces + packed);
    direct_.use(memory + pieces + packed);
    thread_memory_ = memory + pieces + packed + values;
    return true;
  }

  void run() {
    int64_t expert = 0, row = 0;
    do {
      const bool first = row == 0;
      cut_pieces(&expert, &row);
      pack_pieces();
      if (share_experts_) multiply_shares();
      direct_.multiply(pieces_, piece_count_, packed_);
      const auto one = [](int64_t) { return int64_t{1}; };
      for_each_run(tasks_, one, [&](int64_t task, int64_t, const TaskMemory& memory) {
        const int64_t column = task * task_columns_, columns = std::min(task_columns_, problem_.n - column);
        if (first) clear(column, columns);
        for (int64_t i = 0; i < piece_count_; ++i) {
          if (problem_.sums_only()) {
            store_sums(pieces_[i], column, columns, memory);
            continue;
          }
          if (!share_experts_) multiply_piece(pieces_[i], column, columns, memory);
          add_piece(pieces_[i], column, columns, memory);
        }
        if (columns % kPanelColumns != 0) *memory.is_clear = false;  // behind them products have sums too
        if (row == rows_ && present(args_.shared_input)) add_shared_input(column, columns);
      });
    } while (row < rows_);
  }

 private:
  int64_t experts_with_rows() const {
    int64_t count = 0, before = 0;
    for (int64_t i = 0; i < problem_.experts; before = group_ends_[i++]) count += group_ends_[i] > before ? 1 : 0;
    return count;
  }

  // Whole panels in rows of k, whole blocks in a group.
  static bool has_own_product(const CombineKernel& kernel, const CombineProblem& problem) {
    if (kernel.panel_columns == 0 || !problem.int4()) return false;
    const WeightSource& weight = problem.weight.source;
    const bool panels = weight.chunk_bytes == 0 || weight.chunk == kernel.panel_columns;
    const bool groups = kernel.multiply_scaled_int4 == nullptr || problem.group_size() <= kMostGroup;
    return weight.order == WeightOrder::rows_of_k && panels && groups && problem.n % kernel.panel_columns == 0 &&
           problem.group_size() % (4 * kernel.block_steps) == 0;
  }

  // Whole panels and steps in rows of k.
  static bool has_int8_product(const CombineKernel& kernel, const CombineProblem& problem) {
    const WeightSource& weight = problem.weight.source;
    return kernel.multiply_int8 != nullptr && !problem.int4() && weight.order == WeightOrder::rows_of_k &&
           weight.chunk_bytes == 0 && problem.n % kPanelColumns == 0 && problem.k % 4 == 0;
  }

  // The k of few rows that share a scale are halved where two threads would be left one expert: two groups, of one scale.
  int64_t scale_groups() const {
    const bool halves = scales_ && problem_.scale_groups == 1 && problem_.k % (8 * kernel_.block_steps) == 0 &&
                        experts_with_rows() % 2 != 0 && rows_ <= kHalvedRows * experts_with_rows();
    return halves ? 2 : problem_.scale_groups;
  }

  RowTiles row_tiles() const {
    if (own_int8_) return {kernel_.int8_tile_rows, 1, 0, true};
    if (scales_) return {kernel_.tile_rows, 1, 0, true};
    if (own_product_) return {kernel_.tile_rows, 1, kernel_.block_steps};
    return {int8_.tile_rows, int8_.unit_steps, 0};
  }

  // Wide tasks read long stretches of memory, but the sums of all rows of an expert should stay in the caches, or with
  // few rows the panels. As many tasks for each thread.
  int64_t most_columns() const {
    const int64_t experts = std::max<int64_t>(1, std::min(problem_.experts, rows_));
    const int64_t rows = std::max<int64_t>(1, rows_ / experts);
    const WeightSource& weight = problem_.weight.source;
    const bool long_runs = weight.order == WeightOrder::rows_of_k && weight.chunk_bytes == 0;
    int64_t most = kColumns;
    if (own_int8_ || scales_) {
      most = std::max(kColumns, kDeepSums / rows);
    } else if (own_product_) {
      most = std::max(kColumns, kCachedSums / rows);
    } else if (long_runs && rows <= kernel_.unpacking.wide_rows) {
      most = kernel_.unpacking.wide_columns;
    }
    const int64_t owners = share_experts_ ? 1 : threads_;
    const int64_t tasks = owners * ceil_divide(problem_.n, owners * most);
    return round_up(ceil_divide(problem_.n, tasks), kColumns);
  }

  int64_t panel_bytes() const { return own_product_ || own_int8_ ? 0 : columns_ * span_; }

  float* y(int64_t row, int64_t column) const { return static_cast<float*>(args_.y.data) + row * problem_.n + column; }

  // Threads take runs from each other: experts have more rows or fewer.
  template <typename Length, typename Run>
  void for_each_run(int64_t count, const Length& length, const Run& run) {
    for (int64_t thread = 0; thread < threads_; ++thread) *task_memory(thread).is_clear = scales_;
    parallel_runs(threads_, count, length, [&](int64_t begin, int64_t end, int64_t thread) {
      const TaskMemory memory = task_memory(thread);
      if (!*memory.is_clear) clear_sums(memory);
      run(begin, end, memory);
    });
  }

  void clear_sums(const TaskMemory& memory) const {
    std::fill_n(memory.sums, sums_, 0);
    std::fill_n(memory.column_sums, columns_, 0);
    *memory.is_clear = true;
  }

  // Whole pieces for each thread, and of the pieces that are left parts of k, since memory is fastest along whole rows of
  // k: halves, or parts whose sums are integers. Where neither can be, even parts of all columns of all pieces.
  void multiply_shares() {
    const bool by_k = !scales_ && problem_.scale_groups == 1 && columns_ >= problem_.n;
    const bool halves = std::all_of(pieces_, pieces_ + piece_count_, [&](const Piece& piece) { return halved(piece); });
    whole_pieces_ = by_k || halves ? piece_count_ / threads_ * threads_ : piece_count_;
    if (whole_pieces_ > 0) multiply_columns(whole_pieces_);
    if (halves && whole_pieces_ < piece_count_) return multiply_halves();
    for (int64_t i = whole_pieces_; i < piece_count_; ++i) multiply_parts_of_k(pieces_[i]);
  }

  // Few rows' products with the groups of either half of k are added one after the other, whoever makes them.
  bool halved(const Piece& piece) const { return scales_ && groups_ > 1 && piece.rows <= kHalvedRows; }

  // Those of the second half wait for the first.
  void multiply_halves() {
    const int64_t halves = 2 * (piece_count_ - whole_pieces_);
    for_columns(halves, [&](int64_t half, int64_t column, int64_t columns, const TaskMemory& memory) {
      const Piece& piece = pieces_[whole_pieces_ + half / 2];
      float* values = half % 2 == 0 ? values_of(piece, column, memory) : second_half(piece, column);
      if (half % 2 == 0) {
        start_values(piece, column, columns, values);
      } else {
        for (int64_t row = 0; row < piece.rows; ++row) std::fill_n(values + row * problem_.n, columns, 0.0f);
      }
      multiply_scaled(piece, half % 2, column, columns, memory, values);
    });
  }
  float* second_half(const Piece& piece, int64_t column) const {
    return shared_values_ + (rows_ + piece.row) * problem_.n + column;
  }

  void multiply_parts_of_k(const Piece& piece) {
    const int64_t units = ceil_divide(problem_.k, kUnitOfK);
    parallel_for(threads_, 1, [&](int64_t first, int64_t last) {
      for (int64_t thread = first; thread < last; ++thread) {
        const TaskMemory memory = task_memory(thread);
        clear_sums(memory);
        const int64_t begin = units * thread / threads_ * kUnitOfK;
        const int64_t end = std::min(problem_.k, units * (thread + 1) / threads_ * kUnitOfK);
        multiply_int4(piece, {begin, end, begin, begin / 4}, 0, problem_.n, memory);
      }
    });
    const int64_t all = ceil_divide(problem_.n, kColumns);
    parallel_for(threads_, 1, [&](int64_t begin, int64_t end) {
      const int64_t column = all * begin / threads_ * kColumns;
      const int64_t columns = std::min(problem_.n, all * end / threads_ * kColumns) - column;
      const TaskMemory sum = from_column(task_memory(0), piece, column);
      for (int64_t thread = 1; thread < threads_; ++thread) {
        const TaskMemory part = from_column(task_memory(thread), piece, column);
        add_integers(part.sums, columns * piece.rows, sum.sums);
        add_integers(part.column_sums, columns, sum.column_sums);
      }
      start_values(piece, column, columns, values_of(piece, column, sum));
      scale_sums(piece, 0, column, columns, sum);
    });
  }

  static TaskMemory from_column(TaskMemory memory, const Piece& piece, int64_t column) {
    memory.sums += column * piece.rows;
    memory.column_sums += column;
    memory.of_column += column;
    memory.scale += column;
    return memory;
  }

  static void add_integers(const int32_t* from, int64_t count, int32_t* to) {
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<int32_t>(static_cast<uint32_t>(to[i]) + from[i]);
  }

  void multiply_columns(int64_t pieces) {
    for_columns(pieces, [&](int64_t piece, int64_t column, int64_t columns, const TaskMemory& memory) {
      multiply_piece(pieces_[piece], column, columns, memory);
    });
  }

  // Runs of columns of all items, even parts of which are a thread's own.
  template <typename Task>
  void for_columns(int64_t items, const Task& task) {
    const int64_t units = ceil_divide(problem_.n, kColumns), all = items * units;
    const auto length = [&](int64_t unit) { return std::min(units - unit % units, columns_ / kColumns); };
    for_each_run(all, length, [&](int64_t begin, int64_t end, const TaskMemory& memory) {
      const int64_t column = begin % units * kColumns;
      task(begin / units, column, std::min((end - begin) * kColumns, problem_.n - column), memory);
    });
  }

  TaskMemory task_memory(int64_t thread) const {
    Carver carver(reinterpret_cast<uintptr_t>(thread_memory_ + thread * thread_bytes_));
    return carve(&carver);
  }

  TaskMemory carve(Carver* carver) const {
    TaskMemory memory = {};
    memory.is_clear = carver->take<bool>(1);
    memory.panels = carver->take<uint8_t>(panel_bytes());
    memory.sums = carver->take<int32_t>(sums_);
    memory.values = carver->take<float>(sums_);
    memory.column_sums = carver->take<int32_t>(columns_);
    memory.of_column = carver->take<int32_t>(columns_);
    memory.scale = carver->take<float>(columns_);
    if (scales_) memory.scaled = carver->take<float>(sums_);
    return memory;
  }

  // Fills the table with the rows that come next.
  void cut_pieces(int64_t* expert, int64_t* row) {
    piece_count_ = packed_rows_ = 0;
    direct_.give_back();
    const int64_t end = std::min(rows_, *row + most_rows_);
    while (*row < end && piece_count_ < most_pieces_) {
      const int64_t left = group_ends_[*expert] - *row;
      if (left == 0) {
        ++*expert;
        continue;
      }
      const int64_t even = round_up(ceil_divide(left, ceil_divide(left, kPieceRows)), tiles_.rows);
      const int64_t rows = std::min({left, even, end - *row});
      pieces_[piece_count_++] = {*expert, *row, rows, packed_rows_, direct_.take(rows), false};
      packed_rows_ += rows + 1;
      *row += rows;
    }
  }

  void pack_pieces() {
    const int64_t values = packed_rows_ * problem_.k;
    parallel_for(piece_count_, std::max<int64_t>(1, kPackWork * piece_count_ / std::max<int64_t>(1, values)),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t i = begin; i < end; ++i) {
                     packed_.pack(pieces_[i]);
                     pieces_[i].long_sums = has_long_sums(pieces_[i]);
                   }
                 });
  }

  bool has_long_sums(const Piece& piece) const {
    const int64_t block = 4 * kernel_.block_steps;
    if (!own_product_ || kernel_.small_sums == nullptr || problem_.group_size() % (2 * block) != 0) return false;
    const auto* x = static_cast<const int8_t*>(args_.x.data) + piece.row * args_.x.strides[0];
    bool small = args_.x.strides[1] == 1;
    for (int64_t row = 0; row < piece.rows; ++row, x += args_.x.strides[0]) {
      small = small && kernel_.small_sums(x, problem_.k);
    }
    return small;
  }

  // What is added to, or the sums of rows behind the groups.
  void clear(int64_t column, int64_t columns) const {
    const int64_t first = problem_.sums_only() ? rows_ : 0;
    for (int64_t row = first; row < problem_.batch; ++row) std::fill_n(y(row, column), columns, 0.0f);
  }

  // Where the results of a piece go, rows values_stride() apart.
  float* values_of(const Piece& piece, int64_t column, const TaskMemory& memory) const {
    return share_experts_ ? shared_values_ + piece.row * problem_.n + column : memory.values;
  }
  int64_t values_stride() const { return share_experts_ ? problem_.n : columns_; }

  void multiply_piece(const Piece& piece, int64_t column, int64_t columns, const TaskMemory& memory) const {
    start_values(piece, column, columns, values_of(piece, column, memory));
    if (scales_) {
      for (int64_t part = 0; part < (halved(piece) ? 2 : 1); ++part) {
        multiply_scaled(piece, part, column, columns, memory, values_of(piece, column, memory));
      }
      return;
    }
    for (int64_t index = 0; index < problem_.scale_groups; ++index) {
      const ScaleGroup group = packed_.group(index);
      own_product_ ? multiply_int4(piece, group, column, columns, memory)
                   : multiply(piece, group, column, columns, memory);
      scale_sums(piece, index, column, columns, memory);
    }
  }

  void scale_sums(const Piece& piece, int64_t index, int64_t column, int64_t columns, const TaskMemory& memory) const {
    load_scale(piece.expert * problem_.scale_groups + index, column, columns, memory.scale);
    take_column_sums(own_product_ ? memory.column_sums : memory.sums + piece.rows * columns_, columns,
                     memory.of_column);
    const auto scale = own_product_ ? kernel_.scale_int4 : kernel_.scale_group;
    scale({memory.sums, columns_, values_of(piece, column, memory), values_stride(), packed_.of_rows(piece, index),
           memory.of_column, memory.scale, piece.rows, columns});
  }

  void store_sums(const Piece& piece, int64_t column, int64_t columns, const TaskMemory& memory) const {
    multiply(piece, packed_.group(0), column, columns, memory);
    const int32_t* of_rows = packed_.of_rows(piece, 0);
    for (int64_t row = 0; row < piece.rows; ++row) {
      int32_t* sums = memory.sums + row * columns_;
      int32_t* to = static_cast<int32_t*>(args_.y.data) + (piece.row + row) * problem_.n + column;
      const auto of_row = static_cast<uint32_t>(of_rows[row]);
      for (int64_t i = 0; i < columns; ++i) to[i] = static_cast<int32_t>(static_cast<uint32_t>(sums[i]) - of_row);
      std::fill_n(sums, columns, 0);
    }
  }

  void add_piece(const Piece& piece, int64_t column, int64_t columns, const TaskMemory& memory) const {
    float* values = values_of(piece, column, memory);
    if (share_experts_ && scales_ && &piece >= pieces_ + whole_pieces_) {
      for (int64_t row = 0; row < piece.rows; ++row) {
        kernel_.add_row(second_half(piece, column) + row * problem_.n, 1, 1, columns, values + row * problem_.n);
      }
    }
    for (int64_t row = piece.row; row < piece.row + piece.rows; ++row, values += values_stride()) {
      kernel_.add_row(values, row_factor(args_.pertoken_scale, row), row_factor(args_.logit, row), columns,
                      y(row_index_[row], column));
    }
  }

  // With int4 weights 8 times the sums of the columns are subtracted from the sums of a group.
  void take_column_sums(int32_t* sums, int64_t columns, int32_t* of_column) const {
    if (!problem_.int4()) return std::fill_n(of_column, columns, 0), void();
    for (int64_t i = 0; i < columns; ++i) {
      of_column[i] = 8 * sums[i];
      sums[i] = 0;
    }
  }

  static float row_factor(const anynpu_tensor& factors, int64_t row) {
    return present(factors) ? static_cast<const float*>(factors.data)[row] : 1.0f;
  }

  // bias + sum of x * offset.
  void start_values(const Piece& piece, int64_t column, int64_t columns, float* values) const {
    const int64_t first = piece.expert * problem_.n + column;
    const auto* bias = static_cast<const float*>(args_.bias.data) + first;
    const auto* offset = static_cast<const float*>(args_.offset.data) + first;
    for (int64_t row = 0; row < piece.rows; ++row, values += values_stride()) {
      if (present(args_.bias)) {
        std::copy_n(bias, columns, values);
      } else {
        std::fill_n(values, columns, 0.0f);
      }
      if (!present(args_.offset)) continue;
      const auto sum = static_cast<float>(packed_.row_sums(piece)[row]);
      for (int64_t i = 0; i < columns; ++i) values[i] += sum * offset[i];
    }
  }

  void multiply_int4(const Piece& piece, const ScaleGroup& group, int64_t column, int64_t columns,
                     const TaskMemory& memory) const {
    const WeightSource weight = problem_.expert_weight(piece.expert);
    const int64_t panel = kernel_.panel_columns, panel_bytes = weight.chunk_bytes == 0 ? panel / 2 : weight.chunk_bytes;
    const uint8_t* from = weight.data + column / panel * panel_bytes + group.begin * weight.row_bytes;
    kernel_.multiply_int4({from, weight.row_bytes, panel_bytes, columns / panel, group.steps(), packed_.tiles(piece),
                           piece.rows, group.first_step, piece.long_sums, memory.sums, memory.column_sums});
  }

  // By the groups of the first or the second half, or by all.
  void multiply_scaled(const Piece& piece, int64_t part, int64_t column, int64_t columns, const TaskMemory& memory,
                       float* values) const {
    const WeightSource weight = problem_.expert_weight(piece.expert);
    const int64_t scale = piece.expert * problem_.scale_groups * problem_.n + column;
    const int64_t panel = kernel_.panel_columns, panel_bytes = weight.chunk_bytes == 0 ? panel / 2 : weight.chunk_bytes;
    const int64_t group_size = problem_.k / groups_, parts = halved(piece) ? 2 : 1;
    const int64_t first = groups_ * part / parts, end = groups_ * (part + 1) / parts,
                  offset = column / panel * panel_bytes;
    const bool is_last = end == groups_;
    const Piece* after = is_last && &piece + 1 < pieces_ + piece_count_ ? &piece + 1 : &piece;
    const int64_t next_row = is_last ? 0 : end * group_size;
    const uint8_t* next = problem_.expert_weight(after->expert).data + next_row * weight.row_bytes + offset;
    kernel_.multiply_scaled_int4(
        {weight.data + offset, weight.row_bytes, panel_bytes, columns / panel, next, first, end - first, group_size / 4,
         packed_.tiles(piece), packed_.rows(piece), packed_.tile_rows(piece), packed_.row_steps(),
         packed_.of_rows(piece, 0), static_cast<const int64_t*>(args_.scale.data) + scale,
         groups_ == problem_.scale_groups ? problem_.n : 0, memory.sums, memory.scaled, values, values_stride()});
  }

  void multiply(const Piece& piece, const ScaleGroup& group, int64_t column, int64_t columns,
                const TaskMemory& memory) const {
    if (piece.direct >= 0) {
      for (int64_t row = 0; row < piece.rows; ++row)
        direct_.add(piece, row, column, columns, memory.sums + row * columns_);
      return;
    }
    if (own_int8_) return multiply_int8(piece, column, columns, memory);
    const WeightSource weight = problem_.expert_weight(piece.expert);
    for (int64_t k = group.first_k; k < group.end; k += span_) {
      const WeightPart part = {k, std::min(span_, group.end - k), column, columns};
      gemm_kernel().unpack(weight, part, memory.panels);
      const int64_t steps = ceil_divide(part.k_count, 4), first_step = group.first_step + (k - group.first_k) / 4;
      for (int64_t panel = 0; panel < columns; panel += kPanelColumns) {
        int8_.multiply({{memory.panels + panel * steps * 4},
                        packed_.tiles(piece),
                        memory.sums + panel,
                        packed_.rows(piece),
                        first_step,
                        steps,
                        packed_.row_steps(),
                        columns_});
      }
    }
  }

  void multiply_int8(const Piece& piece, int64_t column, int64_t columns, const TaskMemory& memory) const {
    const Piece* end = pieces_ + piece_count_;
    const Piece* next = std::find_if(&piece + 1, end, [](const Piece& other) { return other.direct < 0; });
    const WeightSource weight = problem_.expert_weight(piece.expert);
    const WeightSource later = problem_.expert_weight(next == end ? piece.expert : next->expert);
    kernel_.multiply_int8({weight.data + column, weight.row_bytes, columns / kPanelColumns, problem_.k / 4,
                           packed_.tiles(piece), piece.rows, packed_.tile_rows(piece), packed_.row_steps(), memory.sums,
                           columns_, later.data + column});
  }

  // Of row `row` of all scales; the low half of a 64-bit word is a float32.
  void load_scale(int64_t row, int64_t column, int64_t columns, float* to) const {
    const int64_t first = row * problem_.n + column;
    if (problem_.int4()) {
      const auto* words = static_cast<const int64_t*>(args_.scale.data) + first;
      for (int64_t i = 0; i < columns; ++i) {
        const auto bits = static_cast<uint32_t>(words[i]);
        std::memcpy(to + i, &bits, sizeof(bits));
      }
      return;
    }
    const int32_t dtype = args_.scale.dtype;
    const auto* from = static_cast<const uint8_t*>(args_.scale.data) + first * (dtype_bits(dtype) / 8);
    gemm_kernel().load_floats(from, dtype, 1, columns, to);
  }

  void add_shared_input(int64_t column, int64_t columns) const {
    const anynpu_tensor& shared = args_.shared_input;
    const int64_t step = shared.strides[1];
    const auto* from = static_cast<const uint16_t*>(shared.data) + column * step;
    for (int64_t row = 0; row < shared.shape[0]; ++row, from += shared.strides[0]) {
      float* to = y(args_.shared_input_offset + row, column);
      if (step == 1 || columns == 1) {
        kernel_.add_shared(from, args_.shared_input_weight, columns, to);
      } else {
        for (int64_t i = 0; i < columns; ++i) kernel_.add_shared(from + i * step, args_.shared_input_weight, 1, to + i);
      }
    }
  }

  const CombineProblem& problem_;
  const anynpu_grouped_matmul_combine_args& args_;
  const int64_t* group_ends_;
  const int64_t* row_index_;
  const int64_t rows_;
  const CombineKernel& kernel_;
  const Int8Kernel& int8_;
  const bool own_product_;  // unless a better tier multiplies int8
  const bool scales_;       // and the kernel of it scales its sums
  const bool own_int8_;     // likewise, with int8 weights
  const RowTiles tiles_;
  const int64_t groups_;  // of k
  PackedRows packed_;
  DirectSums direct_;
  int64_t most_rows_, most_pieces_, threads_, columns_, task_columns_, span_, tasks_;
  bool share_experts_;
  int64_t sums_ = 0, thread_bytes_ = 0, piece_count_ = 0, whole_pieces_ = 0, packed_rows_ = 0;
  Piece* pieces_ = nullptr;
  float* shared_values_ = nullptr;
  uint8_t* thread_memory_ = nullptr;
};

int32_t run(const CombineProblem& problem) {
  const std::unique_ptr<int64_t[]> group_ends(new (std::nothrow) int64_t[problem.experts]);
  if (!group_ends) return fail(ANYNPU_NO_MEMORY, "%s: no memory for the groups", kOp);
  ANYNPU_TRY(read_groups(problem, group_ends.get()));
  const int64_t rows = problem.experts == 0 ? 0 : group_ends[problem.experts - 1];
  const std::unique_ptr<int64_t[]> row_index(new (std::nothrow) int64_t[rows]);
  if (!row_index) return fail(ANYNPU_NO_MEMORY, "%s: no memory for %lld rows", kOp, wide(rows));
  if (!problem.sums_only()) ANYNPU_TRY(read_row_index(problem, rows, row_index.get()));
  if (problem.n == 0 || problem.batch == 0) return ANYNPU_OK;
  Combine combine(problem, group_ends.get(), row_index.get());
  if (!combine.allocate()) return fail(ANYNPU_NO_MEMORY, "%s: no memory for the packed x", kOp);
  combine.run();
  return ANYNPU_OK;
}

}  // namespace
}  // namespace anynpu

using anynpu::check_data;
using anynpu::fail;

extern "C" int32_t anynpu_grouped_matmul_combine_check(const anynpu_grouped_matmul_combine_args* args,
                                                       size_t* workspace_bytes) {
  if (args == nullptr || workspace_bytes == nullptr) {
    return fail(ANYNPU_NULL_ARG, "grouped_matmul_combine: null argument");
  }
  *workspace_bytes = 0;
  anynpu::CombineProblem problem;
  return anynpu::check_grouped_matmul_combine(*args, &problem);
}

extern "C" int32_t anynpu_grouped_matmul_combine(const anynpu_grouped_matmul_combine_args* args, void*, size_t) {
  if (args == nullptr) return fail(ANYNPU_NULL_ARG, "grouped_matmul_combine: null argument");
  anynpu::CombineProblem problem;
  ANYNPU_TRY(anynpu::check_grouped_matmul_combine(*args, &problem));
  ANYNPU_TRY(check_data("grouped_matmul_combine", "x", args->x));
  ANYNPU_TRY(check_data("grouped_matmul_combine", "weight", args->weight));
  ANYNPU_TRY(check_data("grouped_matmul_combine", "scale", args->scale));
  ANYNPU_TRY(check_data("grouped_matmul_combine", "group_list", args->group_list));
  ANYNPU_TRY(check_data("grouped_matmul_combine", "row_index", args->row_index));
  ANYNPU_TRY(check_data("grouped_matmul_combine", "bias", args->bias));
  ANYNPU_TRY(check_data("grouped_matmul_combine", "offset", args->offset));
  ANYNPU_TRY(check_data("grouped_matmul_combine", "pertoken_scale", args->pertoken_scale));
  ANYNPU_TRY(check_data("grouped_matmul_combine", "logit", args->logit));
  ANYNPU_TRY(check_data("grouped_matmul_combine", "shared_input", args->shared_input));
  ANYNPU_TRY(check_data("grouped_matmul_combine", "y", args->y));
  return anynpu::run(problem);
}
