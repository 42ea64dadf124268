// SPDX-License-Identifier: Apache-2.0
#include "ops/weight_quant_matmul/plan.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "core/integer.h"
#include "core/parallel.h"
#include "ops/weight_quant_matmul/k_blocks.h"

namespace anynpu {
namespace {

constexpr int64_t kRowsAtOnce = 512;       // rows of x packed at once
constexpr int64_t kRowMultiple = 12;       // rows in whole tiles of all schemes but bf16
constexpr int64_t kByteSpan = 1024;        // k of many int8 rows at a time: they fit into the second cache
constexpr int64_t kTaskWork = 1 << 18;     // products a thread; below it a second thread costs more than it gives
constexpr int64_t kWordRestFraction = 12;  // of the values of a row in words: more rests cost more than float32

int32_t digits_of(const WeightQuantProblem& problem) {
  if (problem.has_int8_rows()) return 1;
  return problem.args->inner_precise == 1 ? 2 : 3;
}

// The bfloat16 that add up to a value of x.
int32_t planes_of(const WeightQuantProblem& problem) {
  if (problem.args->x.dtype != ANYNPU_FLOAT32) return problem.args->x.dtype == ANYNPU_BFLOAT16 ? 1 : 2;
  return digits_of(problem);
}

// So few rows of x that they are one tile of digits.
bool is_one_tile(const WeightQuantProblem& problem) { return problem.rows <= kStreamDigitRows / digits_of(problem); }

// Prepacked weights of one tile, or of int8 rows.
bool can_stream(const WeightQuantProblem& problem, const GemmKernel& kernel) {
  return kernel.stream_digits[digits_of(problem)] != nullptr && (is_one_tile(problem) || problem.has_int8_rows()) &&
         problem.args->weight.dtype == ANYNPU_UINT8;
}

// Raw weights of one tile.
bool can_go_direct(const WeightQuantProblem& problem, const GemmKernel& kernel) {
  if (kernel.direct_digits[digits_of(problem)] == nullptr || !is_one_tile(problem)) return false;
  const WeightSource& source = problem.weight.source;
  const bool by_k = source.order == WeightOrder::rows_of_k;
  if (!by_k && problem.has_int8_rows() && problem.rows > kernel.direct_byte_rows_of_n) return false;
  return problem.args->weight.dtype != ANYNPU_UINT8 && (source.bits == 8 || (by_k ? problem.n : problem.k) % 2 == 0);
}

// Int8 weights of few rows that the f32 scheme takes as they are.
bool can_skip_panels(const WeightQuantProblem& problem, const GemmKernel& kernel) {
  return problem.weight.source.bits == 8 && problem.rows <= kernel.few_rows;
}

// Very few rows are bound by memory, and digits take less work to unpack. Where k lie side by side, so do they for one tile.
bool can_pair(const WeightQuantProblem& problem, const GemmKernel& kernel) {
  constexpr int64_t kVeryFewRows = 2;
  if (kernel.pairs.multiply == nullptr || problem.rows <= kVeryFewRows) return false;
  const WeightSource& source = problem.weight.source;
  if (problem.args->x.dtype != ANYNPU_BFLOAT16 || source.bits != 4) return false;
  return source.order != WeightOrder::rows_of_n || !can_go_direct(problem, kernel);
}

// Raw weights of so few rows that they go into the pairs without panels.
bool can_pair_directly(const WeightQuantProblem& problem, const GemmKernel& kernel) {
  return problem.args->weight.dtype != ANYNPU_UINT8 && problem.weight.source.order == WeightOrder::rows_of_k &&
         problem.n % 2 == 0 && problem.rows <= kernel.pairs.direct_rows;
}

Scheme choose_scheme(const WeightQuantProblem& problem, const GemmKernel& kernel) {
  constexpr int64_t kFewRows = 4;     // that many are bound by memory, where digits unpack with less work
  constexpr int64_t kPlaneRows = 32;  // more for each further plane, with fewer of which digits are faster
  if (problem.has_int8_rows()) return Scheme::digits;
  if (can_pair(problem, kernel)) return Scheme::pairs;
  const int32_t planes = planes_of(problem);
  if (planes <= kernel.bf16.most_planes && problem.rows > std::max(kFewRows, kPlaneRows * (planes - 1))) {
    return Scheme::bf16;
  }
  if (kernel.multiply_digits[digits_of(problem)] != nullptr) return Scheme::digits;
  const bool few = can_stream(problem, kernel) || can_go_direct(problem, kernel);
  if (few && problem.weight.source.bits == 4) return Scheme::digits;
  const bool fits_words = problem.args->x.dtype != ANYNPU_FLOAT32 || problem.args->inner_precise == 1;
  return kernel.multiply_words != nullptr && fits_words && !can_skip_panels(problem, kernel) ? Scheme::words
                                                                                             : Scheme::f32;
}

int64_t most_rests(const WeightQuantProblem& problem, const GemmKernel& kernel, const WeightQuantPlan& plan) {
  if (digits_of(problem) < 3) return 0;
  if (plan.scheme == Scheme::words) return std::max<int64_t>(1, problem.k / kWordRestFraction);
  if (plan.scheme != Scheme::digits || kernel.rest_fraction == 0) return 0;
  // Where k lie side by side, those of a rest are far apart.
  const bool side_by_side = problem.weight.source.order == WeightOrder::rows_of_n;
  return plan.direct && (side_by_side || !kernel.direct_rests) ? 0 : problem.k / kernel.rest_fraction;
}

int64_t byte_tile_rows(const WeightQuantProblem& problem, const GemmKernel& kernel, const WeightQuantPlan& plan) {
  if (plan.stream && !is_one_tile(problem)) return kernel.byte_tile_rows;
  return plan.stream || plan.direct ? kStreamDigitRows : kTileDigitRows;
}

// Most columns of a task. Rows of k come from memory in runs of them, faster in long ones, which pays as long as the sums
// stay near.
int64_t widest_block(const WeightQuantProblem& problem, const GemmKernel& kernel, const WeightQuantPlan& plan) {
  constexpr int64_t kRowsOfRuns = 128;
  const WeightSource& source = problem.weight.source;
  const bool in_runs =
      problem.args->weight.dtype != ANYNPU_UINT8 && source.order == WeightOrder::rows_of_k && source.chunk_bytes == 0;
  if (plan.direct) {
    return in_runs ? kernel.direct_sums / (plan.digits * problem.rows) / kPanelColumns * kPanelColumns : kPanelColumns;
  }
  const int64_t widest = plan.stream || plan.chunk_rows > 16 ? 128 : 256;
  return in_runs && plan.chunk_rows <= kRowsOfRuns ? std::max(widest, kernel.panel_run) : widest;
}

// Whether each thread packs x for itself and keeps to its own columns. That is more work, but threads then meet once less,
// and lines that another core has written come late: on another core complex they cost more than packing. With panels the
// product takes long beside both, and threads share its tasks out as they go.
bool packs_by_thread(const WeightQuantProblem& problem, const WeightQuantPlan& plan) {
  constexpr int64_t kLeastColumns = 256;  // a thread
  constexpr int64_t kMostBytes = 1 << 18;
  const int64_t bytes = plan.chunk_rows * plan.row_dwords * static_cast<int64_t>(sizeof(int32_t));
  return (plan.stream || plan.direct) && problem.n >= plan.threads * kLeastColumns && bytes <= kMostBytes;
}

}  // namespace

int64_t part_rows(const WeightQuantPlan& plan, int64_t rows) {
  return round_up(ceil_divide(rows, plan.row_parts), plan.row_multiple);
}

WeightQuantPlan make_plan(const WeightQuantProblem& problem, const GemmKernel& kernel) {
  WeightQuantPlan plan = {};
  plan.scheme = choose_scheme(problem, kernel);
  const bool words = plan.scheme == Scheme::words, pairs = plan.scheme == Scheme::pairs;
  plan.digits = words || pairs                  ? 2
                : plan.scheme == Scheme::digits ? digits_of(problem)
                : plan.scheme == Scheme::bf16   ? planes_of(problem)
                                                : 1;
  plan.row_multiple = plan.scheme == Scheme::bf16 ? std::lcm(kRowMultiple, kernel.bf16.tile_rows) : kRowMultiple;
  plan.step_k = words || pairs || plan.scheme == Scheme::digits ? 4 : plan.scheme == Scheme::bf16 ? 2 : 1;
  plan.stream = plan.scheme == Scheme::digits && can_stream(problem, kernel);
  plan.direct = plan.scheme == Scheme::digits && can_go_direct(problem, kernel);
  if (pairs) {
    plan.stream = problem.args->weight.dtype == ANYNPU_UINT8;
    plan.direct = can_pair_directly(problem, kernel);
  }
  if (plan.scheme == Scheme::f32 && can_skip_panels(problem, kernel)) {
    plan.stream = problem.weight.source.order == WeightOrder::packed32;
    plan.direct = !plan.stream;
  }
  const bool bytes = problem.has_int8_rows();
  if (bytes) plan.row_multiple = plan.tile_rows = byte_tile_rows(problem, kernel, plan);
  const bool one_tile = !(pairs || bytes) || problem.rows <= (bytes ? plan.tile_rows : kernel.pairs.tile_rows);
  plan.stream_span = one_tile ? problem.k : bytes ? kByteSpan : kSpan;
  plan.most_rests = most_rests(problem, kernel, plan);
  plan.row_dwords = ceil_divide(problem.k, plan.step_k) * plan.digits;
  const int64_t chunks = std::max<int64_t>(1, ceil_divide(problem.rows, kRowsAtOnce));
  plan.chunk_rows = std::min(problem.rows, round_up(ceil_divide(problem.rows, chunks), plan.row_multiple));
  plan.block_count = count_blocks(problem.k, problem.group);

  const double work =
      static_cast<double>(problem.k) * static_cast<double>(problem.n) * static_cast<double>(plan.chunk_rows);
  const int64_t parts = ceil_divide(problem.n, kPanelColumns) * ceil_divide(plan.chunk_rows, plan.row_multiple);
  plan.threads = std::min<int64_t>(parts, thread_count(static_cast<int64_t>(std::min(work, 1e15)), kTaskWork));
  const int64_t widest = widest_block(problem, kernel, plan);
  const int64_t per_thread = ceil_divide(problem.n, plan.threads * widest);
  const int64_t block = ceil_divide(problem.n, plan.threads * std::max<int64_t>(1, per_thread));
  plan.stream_block = std::max(kStreamColumns, round_up(block, kStreamColumns));
  plan.column_block = std::max(kPanelColumns, round_up(block, kPanelColumns));
  const int64_t column_tasks = ceil_divide(problem.n, plan.column_block);
  plan.row_parts = column_tasks >= plan.threads
                       ? 1
                       : std::min(ceil_divide(plan.threads, std::max<int64_t>(1, column_tasks)),
                                  ceil_divide(plan.chunk_rows, plan.row_multiple));
  plan.shares = 1;
  if (packs_by_thread(problem, plan)) std::swap(plan.shares, plan.threads);
  return plan;
}

}  // namespace anynpu
