// SPDX-License-Identifier: Apache-2.0
// The driver of weight_quant_matmul. Rows of x are packed first, then each task owns a block of columns (and, when
// columns are few, a part of the rows): it unpacks the weights of one span of k after the other into its scratch and
// multiplies. The order of additions into an element of y depends on K and the group size alone, so results do not
// depend on threads.
//
// No integer overflows: a digit of x lies in [-128, 127], a panel byte in [0, 255] and a block has at most kSpan = 256
// k, so an accumulator stays within 256 * 255 * 128 + its compensation 256 * 128 * 128 < 2^24.
#include "ops/weight_quant_matmul/weight_quant_matmul.h"

#include <algorithm>
#include <cstring>

#include "core/integer.h"
#include "core/parallel.h"
#include "core/quant_param.h"
#include "core/scratch.h"

namespace anynpu {
namespace {

constexpr const char* kOp = "weight_quant_matmul";
constexpr int64_t kRowsAtOnce = 512;    // rows of x packed at once
constexpr int64_t kTaskWork = 1 << 20;  // products a thread; below it a second thread costs more than it gives
constexpr int64_t kPackWork = 1 << 15;  // values of x a thread
constexpr int64_t kWordRestFraction = 12;  // of the values of a row in words: more rests cost more than float32
constexpr int64_t kRowMultiple = 12;    // whole tiles of every scheme
constexpr int64_t kRowsAtHand = 96;     // rows of x in float32 that pass by the operands of a span

enum class Scheme { f32, digits, words, bf16 };

// Hands out parts of one allocation; with a null base it only counts.
class Carver {
 public:
  explicit Carver(void* base) : base_(static_cast<uint8_t*>(base)) {}
  template <typename T>
  T* take(int64_t count) {
    T* part = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += round_up(count * static_cast<int64_t>(sizeof(T)), kScratchAlignment);
    return part;
  }
  int64_t used() const { return used_; }

 private:
  uint8_t* base_;
  int64_t used_ = 0;
};

struct ThreadScratch {
  float* row;        // one row of x, padded to whole steps
  uint8_t* panels;   // one span of a block of columns
  int32_t* operand;  // a panel in the operand form of the scheme, or all of a span in float32
  int32_t* sums;     // of direct products
  float* scale;      // of the blocks of a span
  float* offset;
  float* c;
};

struct Plan {
  Scheme scheme;
  int32_t digits;  // of the digits and words schemes
  int64_t step_k;  // k per step
  int64_t row_dwords;  // packed size of one row
  int64_t most_rests;  // of a row in two digits, for which others are taken if it has more; 0: rests are not kept
  bool stream;         // prepacked weights and so few rows that they are one tile: no panels
  bool direct;         // raw weights, likewise
  int64_t chunk_rows;  // rows of x packed at once
  int64_t block_count;
  int64_t column_block;
  int64_t row_parts;
  int64_t threads;
};

// Everything the run needs, in one allocation.
struct Storage {
  KBlock* blocks;
  float* bias;
  float* quant_scale;
  float* quant_offset;
  int32_t* packed;
  DigitBlock* digit_blocks;
  Rest* rests;         // [rows][most_rests]
  RestList* rest_lists;
  uint8_t* wants_f32;  // [rows]
  int64_t* row_of;     // rows that fell back to f32
  ThreadScratch* threads;
  int64_t bytes;
};

int64_t count_blocks(int64_t k, int64_t group) {
  const int64_t whole = k / group, rest = k % group;
  return whole * ceil_divide(group, kSpan) + ceil_divide(rest, kSpan);
}

void fill_blocks(int64_t k, int64_t group, KBlock* blocks) {
  for (int64_t first = 0; first < k;) {
    const int64_t group_end = std::min((first / group + 1) * group, k);
    *blocks = {first, std::min(kSpan, group_end - first)};
    first += blocks++->count;
  }
}

int32_t digits_of(const WeightQuantProblem& problem) { return problem.args->inner_precise == 1 ? 2 : 3; }

// So few rows of x that they are one tile of digits.
bool is_one_tile(const WeightQuantProblem& problem) { return problem.rows <= kStreamDigitRows / digits_of(problem); }

// Prepacked weights of one tile.
bool can_stream(const WeightQuantProblem& problem, const GemmKernel& kernel) {
  return kernel.stream_digits[digits_of(problem)] != nullptr && is_one_tile(problem) &&
         problem.args->weight.dtype == ANYNPU_UINT8;
}

// Raw weights of one tile.
bool can_go_direct(const WeightQuantProblem& problem, const GemmKernel& kernel) {
  if (kernel.direct_digits[digits_of(problem)] == nullptr || !is_one_tile(problem)) return false;
  const WeightSource& source = problem.weight.source;
  const bool by_k = source.order == WeightOrder::rows_of_k;
  return problem.args->weight.dtype != ANYNPU_UINT8 && (source.bits == 8 || (by_k ? problem.n : problem.k) % 2 == 0);
}

// Int8 weights of few rows that the f32 scheme takes as they are.
bool can_skip_panels(const WeightQuantProblem& problem, const GemmKernel& kernel) {
  return problem.weight.source.bits == 8 && problem.rows <= kernel.few_rows;
}

Scheme choose_scheme(const WeightQuantProblem& problem, const GemmKernel& kernel) {
  constexpr int64_t kFewRows = 4;  // that many are bound by memory, where digits unpack with less work
  if (kernel.multiply_bf16 != nullptr && problem.args->x.dtype == ANYNPU_BFLOAT16 && problem.rows > kFewRows) {
    return Scheme::bf16;
  }
  if (kernel.multiply_digits[digits_of(problem)] != nullptr) return Scheme::digits;
  const bool few = can_stream(problem, kernel) || can_go_direct(problem, kernel);
  if (few && problem.weight.source.bits == 4) return Scheme::digits;
  const bool fits_words = problem.args->x.dtype != ANYNPU_FLOAT32 || problem.args->inner_precise == 1;
  return kernel.multiply_words != nullptr && fits_words && !can_skip_panels(problem, kernel) ? Scheme::words
                                                                                             : Scheme::f32;
}

Plan make_plan(const WeightQuantProblem& problem, const GemmKernel& kernel) {
  Plan plan = {};
  plan.scheme = choose_scheme(problem, kernel);
  const bool words = plan.scheme == Scheme::words;
  plan.digits = words ? 2 : plan.scheme == Scheme::digits ? digits_of(problem) : 1;
  plan.step_k = words || plan.scheme == Scheme::digits ? 4 : plan.scheme == Scheme::bf16 ? 2 : 1;
  plan.stream = plan.scheme == Scheme::digits && can_stream(problem, kernel);
  plan.direct = plan.scheme == Scheme::digits && can_go_direct(problem, kernel);
  if (plan.scheme == Scheme::f32 && can_skip_panels(problem, kernel)) {
    plan.stream = problem.weight.source.order == WeightOrder::packed32;
    plan.direct = !plan.stream;
  }
  const bool side_by_side = problem.weight.source.order == WeightOrder::rows_of_n;  // k, where those of a rest are far apart
  const bool can_keep_rests = !plan.direct || (kernel.direct_rests && !side_by_side);
  if (kernel.rest_fraction > 0 && plan.digits == 3 && can_keep_rests) plan.most_rests = problem.k / kernel.rest_fraction;
  if (words && digits_of(problem) == 3) plan.most_rests = std::max<int64_t>(1, problem.k / kWordRestFraction);
  plan.row_dwords = ceil_divide(problem.k, plan.step_k) * plan.digits;
  const int64_t chunks = std::max<int64_t>(1, ceil_divide(problem.rows, kRowsAtOnce));
  plan.chunk_rows = std::min(problem.rows, round_up(ceil_divide(problem.rows, chunks), kRowMultiple));
  plan.block_count = count_blocks(problem.k, problem.group);

  const double work =
      static_cast<double>(problem.k) * static_cast<double>(problem.n) * static_cast<double>(plan.chunk_rows);
  const int64_t parts = ceil_divide(problem.n, kPanelColumns) * ceil_divide(plan.chunk_rows, kRowMultiple);
  plan.threads = std::min<int64_t>(parts, thread_count(static_cast<int64_t>(std::min(work, 1e15)), kTaskWork));
  int64_t widest = plan.stream || plan.chunk_rows > 16 ? 128 : 256;
  if (plan.direct) {  // long runs of rows of k, as long as the sums stay near; the rest streams by itself
    const WeightSource& source = problem.weight.source;
    widest = source.order == WeightOrder::rows_of_k && source.chunk_bytes == 0
                 ? kernel.direct_sums / (plan.digits * problem.rows) / kPanelColumns * kPanelColumns
                 : 64;
  }
  const int64_t per_thread = ceil_divide(problem.n, plan.threads * widest);
  plan.column_block = std::max(
      kPanelColumns, round_up(ceil_divide(problem.n, plan.threads * std::max<int64_t>(1, per_thread)), kPanelColumns));
  const int64_t column_tasks = ceil_divide(problem.n, plan.column_block);
  plan.row_parts = column_tasks >= plan.threads
                       ? 1
                       : std::min(ceil_divide(plan.threads, std::max<int64_t>(1, column_tasks)),
                                  ceil_divide(plan.chunk_rows, kRowMultiple));
  return plan;
}

Storage lay_out(const WeightQuantProblem& problem, const Plan& plan, void* base) {
  Carver carver(base);
  Storage storage = {};
  const int64_t columns = round_up(problem.n, 16);
  storage.blocks = carver.take<KBlock>(plan.block_count);
  if (problem.has_bias) storage.bias = carver.take<float>(columns);
  if (problem.has_quant) {
    storage.quant_scale = carver.take<float>(columns);
    storage.quant_offset = carver.take<float>(columns);
  }
  storage.packed = carver.take<int32_t>(plan.chunk_rows * plan.row_dwords);
  if (plan.scheme != Scheme::f32) storage.digit_blocks = carver.take<DigitBlock>(plan.chunk_rows * plan.block_count);
  storage.rests = carver.take<Rest>(plan.chunk_rows * plan.most_rests);
  storage.rest_lists = carver.take<RestList>(plan.chunk_rows);
  storage.wants_f32 = carver.take<uint8_t>(plan.chunk_rows);
  storage.row_of = carver.take<int64_t>(plan.chunk_rows);
  storage.threads = carver.take<ThreadScratch>(plan.threads);
  const int64_t span = std::min(kSpan, round_up(problem.k, 4));
  const int64_t scale_blocks =
      std::max(plan.stream ? plan.block_count : 0, kSpan / 32);  // only the last block is under 32
  const int64_t part_rows = round_up(ceil_divide(plan.chunk_rows, plan.row_parts), kRowMultiple);
  for (int64_t thread = 0; thread < plan.threads; ++thread) {
    ThreadScratch scratch = {};
    scratch.row = carver.take<float>(round_up(problem.k, 64) + 64);
    scratch.panels = carver.take<uint8_t>(plan.column_block * span);
    scratch.operand = carver.take<int32_t>(plan.column_block * span);
    if (plan.direct) scratch.sums = carver.take<int32_t>(plan.column_block * plan.chunk_rows * plan.digits);
    scratch.scale = carver.take<float>(plan.column_block * scale_blocks);
    scratch.offset = carver.take<float>(plan.column_block * scale_blocks);
    scratch.c = carver.take<float>(plan.column_block * part_rows);
    if (base != nullptr) storage.threads[thread] = scratch;
  }
  storage.bytes = carver.used();
  return storage;
}

int64_t element_bytes(int32_t dtype) { return dtype_bits(dtype) / 8; }

// Bytes from the data of `tensor` to row `row` of its matrices, counted through all batches.
int64_t row_offset(const anynpu_tensor& tensor, int64_t row) {
  int64_t elements = 0;
  for (int axis = tensor.ndim - 2; axis >= 0; --axis) {
    elements += row % tensor.shape[axis] * tensor.strides[axis];
    row /= tensor.shape[axis];
  }
  return elements * element_bytes(tensor.dtype);
}

void load_channels(const GemmKernel& kernel, const Channels& channels, int64_t group, int64_t column, int64_t count,
                   float* to) {
  const int64_t first = group * channels.group_stride + column * channels.column_stride;
  const uint8_t* from = static_cast<const uint8_t*>(channels.data) + first * element_bytes(channels.dtype);
  if (channels.dtype == ANYNPU_INT64) {
    for (int64_t i = 0; i < count; ++i) std::memcpy(to + i, from + i * channels.column_stride * 8, sizeof(float));
  } else if (channels.column_stride == 0) {
    kernel.load_floats(from, channels.dtype, 1, 1, to);
    std::fill(to + 1, to + count, to[0]);
  } else {
    kernel.load_floats(from, channels.dtype, channels.column_stride, count, to);
  }
}

// A float32 quant_scale is first encoded as trans_quant_param does, so that both forms agree.
void load_quantisation(const WeightQuantProblem& problem, float* scale, float* offset) {
  const Channels &scales = problem.quant_scale, &offsets = problem.quant_offset;
  for (int64_t column = 0; column < problem.n; ++column) {
    const int64_t at = column * scales.column_stride;
    int64_t word;
    if (scales.dtype == ANYNPU_INT64) {
      word = static_cast<const int64_t*>(scales.data)[at];
    } else {
      const float* added = static_cast<const float*>(offsets.data);
      word = encode_quant_param(static_cast<const float*>(scales.data)[at],
                                added == nullptr ? 0.0f : added[column * offsets.column_stride], false);
    }
    const QuantParam param = decode_quant_param(word);
    scale[column] = param.scale;
    offset[column] = param.offset;
  }
}

// Runs fn(first, last, scratch) on slices of [0, count), each with the scratch of one thread.
template <typename Function>
void parallel_slices(const Storage& storage, int64_t slices, int64_t count, const Function& fn) {
  slices = std::min(slices, count);
  parallel_for(slices, 1, [&](int64_t begin, int64_t end) {
    for (int64_t slice = begin; slice < end; ++slice) {
      fn(count * slice / slices, count * (slice + 1) / slices, storage.threads[slice]);
    }
  });
}

// One weight and the rows of x that meet it.
class Product {
 public:
  Product(const WeightQuantProblem& problem, const Plan& plan, const Storage& storage, const GemmKernel& kernel,
          const WeightSource& weight)
      : problem_(problem), plan_(plan), storage_(storage), kernel_(kernel), weight_(weight) {}

  // Rows [first, first + count) of x, counted through all batches.
  void run(int64_t first, int64_t count, int32_t* fallback) {
    if (plan_.scheme == Scheme::f32) {
      for (int64_t row = 0; row < count; ++row) storage_.row_of[row] = first + row;
      return run_f32(count, storage_.packed);
    }
    pack(first, count);
    int64_t exceptions = 0;
    for (int64_t row = 0; row < count; ++row) {
      if (storage_.wants_f32[row]) storage_.row_of[exceptions++] = first + row;
    }
    if (exceptions < count) multiply(Packed{plan_.scheme, storage_.packed, first, count});
    if (exceptions > 0) run_f32(exceptions, fallback);
  }

 private:
  struct Packed {
    Scheme scheme;
    const int32_t* data;
    int64_t first;  // row of x; of f32 the rows are those of row_of
    int64_t rows;
  };

  void load_row(int64_t row, float* to) const {
    const anynpu_tensor& x = problem_.args->x;
    const uint8_t* from = static_cast<const uint8_t*>(x.data) + row_offset(x, row);
    kernel_.load_floats(from, x.dtype, x.strides[x.ndim - 1], problem_.k, to);
    std::fill(to + problem_.k, to + round_up(problem_.k, 64) + 64, 0.0f);
  }

  int64_t pack_threads(int64_t rows) const {
    return std::min(plan_.threads, std::max<int64_t>(1, rows * problem_.k / kPackWork));
  }

  // Two digits and rests where that may pay. In the digits scheme all rows of a call have as many digits; in words a row
  // stands alone.
  void pack(int64_t first, int64_t count) {
    const bool with_rests = plan_.most_rests > 0;
    digits_ = with_rests ? 2 : plan_.digits;
    pack_rows(first, count, with_rests);
    if (!with_rests || plan_.scheme == Scheme::words) return;
    const bool fit = std::all_of(storage_.rest_lists, storage_.rest_lists + count, fits_its_rests);
    if (fit) return;
    digits_ = plan_.digits;
    pack_rows(first, count, false);
  }

  // Such a row is multiplied with its tile, for nothing.
  void forget_rests(int64_t row, int64_t rows) const {
    for (int64_t block = 0; block < plan_.block_count; ++block)
      storage_.digit_blocks[block * rows + row].rest_count = 0;
  }

  static bool fits_its_rests(const RestList& list) { return list.count <= list.most; }

  int64_t tile_rows() const {
    if (plan_.scheme == Scheme::words) return kernel_.word_tile_rows;
    return (plan_.stream || plan_.direct ? kStreamDigitRows : kTileDigitRows) / digits_;
  }

  void pack_rows(int64_t first, int64_t count, bool with_rests) {
    const int64_t tile_rows = this->tile_rows();
    parallel_slices(
        storage_, pack_threads(count), count, [&](int64_t begin, int64_t end, const ThreadScratch& scratch) {
          for (int64_t row = begin; row < end; ++row) {
            load_row(first + row, scratch.row);
            const int64_t tile = row / tile_rows * tile_rows;
            RestList* rests = with_rests ? storage_.rest_lists + row : nullptr;
            if (with_rests) *rests = {storage_.rests + row * plan_.most_rests, plan_.most_rests, 0};
            const PackedRow packed = {storage_.packed,
                                      storage_.digit_blocks,
                                      count,
                                      tile,
                                      std::min(tile_rows, count - tile),
                                      row - tile,
                                      rests};
            const bool fits = plan_.scheme == Scheme::bf16
                                  ? kernel_.pack_bf16(scratch.row, storage_.blocks, plan_.block_count, packed)
                                  : kernel_.pack_digits(scratch.row, storage_.blocks, plan_.block_count, digits_,
                                                        bias(), packed);
            storage_.wants_f32[row] = !fits || (with_rests && !fits_its_rests(*rests));
            if (storage_.wants_f32[row] && plan_.scheme != Scheme::bf16) forget_rests(row, count);
          }
        });
  }

  void run_f32(int64_t count, int32_t* packed) {
    const int64_t height = kernel_.f32_tile_rows;
    parallel_slices(storage_, pack_threads(count), count,
                    [&](int64_t begin, int64_t end, const ThreadScratch& scratch) {
                      for (int64_t row = begin; row < end; ++row) {
                        load_row(storage_.row_of[row], scratch.row);
                        const int64_t tile = row / height * height, tile_rows = std::min(height, count - tile);
                        for (Span span = span_from(0); span.count > 0; span = span_from(span.last)) {
                          float* to = reinterpret_cast<float*>(packed) + span.k * count + span.count * tile + (row - tile);
                          for (int64_t i = 0; i < span.count; ++i) to[i * tile_rows] = scratch.row[span.k + i];
                        }
                      }
                    });
    multiply(Packed{Scheme::f32, packed, 0, count});
  }

  int32_t bias() const { return weight_.bits == 8 ? 128 : 8; }

  void multiply(const Packed& x) {
    const int64_t column_tasks = ceil_divide(problem_.n, plan_.column_block);
    const int64_t part = round_up(ceil_divide(x.rows, plan_.row_parts), kRowMultiple);
    const int64_t tasks = column_tasks * ceil_divide(x.rows, part);
    parallel_slices(storage_, plan_.threads, tasks, [&](int64_t begin, int64_t end, const ThreadScratch& scratch) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t column = task % column_tasks * plan_.column_block, row = task / column_tasks * part;
        multiply_block(x, row, std::min(part, x.rows - row), column, std::min(plan_.column_block, problem_.n - column),
                       scratch);
      }
    });
  }

  void multiply_block(const Packed& x, int64_t row, int64_t rows, int64_t column, int64_t columns,
                      const ThreadScratch& scratch) {
    std::fill(scratch.c, scratch.c + rows * plan_.column_block, 0.0f);
    if (plan_.stream && x.scheme == plan_.scheme) {
      add_streams(x, column, columns, scratch);
    } else if (plan_.direct && x.scheme == plan_.scheme) {
      add_direct(x, column, columns, scratch);
    } else if (x.scheme == Scheme::f32) {
      add_f32(x, row, rows, column, columns, scratch);
    } else {
      add_panels(x, row, rows, column, columns, scratch);
    }
    for (int64_t each = 0; each < rows; ++each)
      write_row(x, row + each, column, columns, scratch.c + each * plan_.column_block);
  }

  void add_streams(const Packed& x, int64_t column, int64_t columns, const ThreadScratch& scratch) const {
    for (int64_t block = 0; block < plan_.block_count; ++block) load_scales(block, block, column, columns, scratch);
    StreamProduct product;
    product.bits = weight_.bits;
    product.k_blocks = storage_.blocks;
    product.block_count = plan_.block_count;
    product.x = x.data;
    product.blocks = storage_.digit_blocks;
    product.channel_stride = plan_.column_block;
    product.rows = x.rows;
    product.c_stride = plan_.column_block;
    product.rests = digits_ < plan_.digits;
    for (int64_t first = 0; first < columns; first += kStreamColumns) {
      product.cells = weight_.data + (column + first) / kStreamColumns * ceil_divide(problem_.k, 4) * weight_.bits * 16;
      product.scale = scratch.scale + first;
      product.offset = problem_.has_offset ? scratch.offset + first : nullptr;
      product.c = scratch.c + first;
      x.scheme == Scheme::f32 ? kernel_.stream_f32(product) : kernel_.stream_digits[digits_](product);
    }
  }

  void add_direct(const Packed& x, int64_t column, int64_t columns, const ThreadScratch& scratch) const {
    DirectProduct product;
    product.weight = &weight_;
    product.scale = scratch.scale;
    product.offset = problem_.has_offset ? scratch.offset : nullptr;
    product.sums = scratch.sums;
    product.c = scratch.c;
    product.rows = x.rows;
    product.c_stride = plan_.column_block;
    for (int64_t block = 0; block < plan_.block_count; ++block) {
      const KBlock& k = storage_.blocks[block];
      load_scales(block, 0, column, columns, scratch);
      product.part = {k.k, k.count, column, columns};
      product.next = {};
      if (block + 1 < plan_.block_count)
        product.next = {k.k + k.count, storage_.blocks[block + 1].count, column, columns};
      product.x = x.data + k.k / plan_.step_k * x.rows * digits_;
      product.blocks = storage_.digit_blocks + block * x.rows;
      x.scheme == Scheme::f32 ? kernel_.direct_f32(product) : kernel_.direct_digits[digits_](product);
    }
  }

  // Blocks [first, last), together at most kSpan k.
  struct Span {
    int64_t first;
    int64_t last;
    int64_t k;
    int64_t count;
  };

  Span span_from(int64_t first) const {
    Span span = {first, first, 0, 0};
    if (first < plan_.block_count) span.k = storage_.blocks[first].k;
    while (span.last < plan_.block_count && span.count + storage_.blocks[span.last].count <= kSpan) {
      span.count += storage_.blocks[span.last++].count;
    }
    return span;
  }

  void load_span(const Span& span, int64_t column, int64_t columns, const ThreadScratch& scratch) const {
    kernel_.unpack(weight_, {span.k, span.count, column, columns}, scratch.panels);
    for (int64_t block = span.first; block < span.last; ++block) {
      load_scales(block, block - span.first, column, columns, scratch);
    }
  }

  // All operands of a span stay in the second cache while blocks of rows pass by.
  void add_f32(const Packed& x, int64_t row, int64_t rows, int64_t column, int64_t columns,
               const ThreadScratch& scratch) {
    const float* packed = reinterpret_cast<const float*>(x.data);
    PanelProduct product = {};
    product.c_stride = plan_.column_block;
    for (Span span = span_from(0); span.count > 0; span = span_from(span.last)) {
      load_span(span, column, columns, scratch);
      for (int64_t panel = 0; panel < columns; panel += kPanelColumns) fill_operand(span, panel, scratch);
      product.steps = span.count;
      for (int64_t first = 0; first < rows; first += kRowsAtHand) {
        product.x = packed + span.k * x.rows + (row + first) * span.count;
        product.rows = std::min(kRowsAtHand, rows - first);
        for (int64_t panel = 0; panel < columns; panel += kPanelColumns) {
          product.panel = scratch.operand + panel * span.count;
          product.c = scratch.c + first * plan_.column_block + panel;
          kernel_.multiply_f32(product);
        }
      }
    }
  }

  void fill_operand(const Span& span, int64_t panel, const ThreadScratch& scratch) const {
    const uint8_t* bytes = scratch.panels + panel * round_up(span.count, 4);
    float* operand = reinterpret_cast<float*>(scratch.operand) + panel * span.count;
    for (int64_t block = span.first; block < span.last; ++block) {
      const int64_t channels = (block - span.first) * plan_.column_block + panel;
      const KBlock k = {storage_.blocks[block].k - span.k, storage_.blocks[block].count};
      kernel_.panel_f32(bytes, k, static_cast<float>(bias()), scratch.scale + channels,
                        problem_.has_offset ? scratch.offset + channels : nullptr, span.count, operand);
    }
  }

  void add_panels(const Packed& x, int64_t row, int64_t rows, int64_t column, int64_t columns,
                  const ThreadScratch& scratch) {
    for (Span span = span_from(0); span.count > 0; span = span_from(span.last)) {
      load_span(span, column, columns, scratch);
      for (int64_t panel = 0; panel < columns; panel += kPanelColumns) {
        const uint8_t* bytes = scratch.panels + panel * round_up(span.count, 4);
        for (int64_t block = span.first; block < span.last; ++block) {
          const int64_t inside = storage_.blocks[block].k - span.k;
          const Ahead ahead = look_ahead(weight_, {span.k + span.count, span.count, column, columns},
                                         panel / kPanelColumns, inside);
          multiply_panel(x, row, rows, block, block - span.first, panel, bytes + inside * kPanelColumns, ahead, scratch);
        }
      }
    }
  }

  void load_scales(int64_t block, int64_t slot, int64_t column, int64_t columns, const ThreadScratch& scratch) const {
    const int64_t group = storage_.blocks[block].k / problem_.group;
    load_channels(kernel_, problem_.scale, group, column, columns, scratch.scale + slot * plan_.column_block);
    if (problem_.has_offset) {
      load_channels(kernel_, problem_.offset, group, column, columns, scratch.offset + slot * plan_.column_block);
    }
  }

  void multiply_panel(const Packed& x, int64_t row, int64_t rows, int64_t block, int64_t slot, int64_t panel,
                      const uint8_t* bytes, const Ahead& ahead, const ThreadScratch& scratch) const {
    const KBlock& k = storage_.blocks[block];
    PanelProduct product;
    product.scale = scratch.scale + slot * plan_.column_block + panel;
    product.offset = problem_.has_offset ? scratch.offset + slot * plan_.column_block + panel : nullptr;
    product.c = scratch.c + panel;
    product.c_stride = plan_.column_block;
    product.rows = rows;
    product.bias = static_cast<int16_t>(bias());
    product.rests = digits_ < plan_.digits;
    product.ahead = ahead;
    product.steps = ceil_divide(k.count, plan_.step_k);
    product.x = x.data + (k.k / plan_.step_k * x.rows + row * product.steps) * digits_;
    product.blocks = storage_.digit_blocks + block * x.rows + row;
    if (x.scheme == Scheme::bf16) {
      kernel_.panel_bf16(bytes, k.count, static_cast<float>(bias()), scratch.operand);
      product.panel = scratch.operand;
      return kernel_.multiply_bf16(product);
    }
    product.panel = bytes;
    x.scheme == Scheme::words ? kernel_.multiply_words(product) : kernel_.multiply_digits[digits_](product);
  }

  void write_row(const Packed& x, int64_t row, int64_t column, int64_t columns, const float* c) const {
    if (x.scheme != Scheme::f32 && storage_.wants_f32[row]) return;
    const anynpu_tensor& y = problem_.args->y;
    const int64_t stride = y.strides[y.ndim - 1];
    RowOutput output = {};
    output.y = static_cast<uint8_t*>(y.data) +
               row_offset(y, x.scheme == Scheme::f32 ? storage_.row_of[row] : x.first + row) +
               column * stride * element_bytes(y.dtype);
    output.stride = stride;
    output.count = columns;
    output.dtype = y.dtype;
    if (problem_.has_bias) output.bias = storage_.bias + column;
    if (problem_.has_quant) {
      output.quant_scale = storage_.quant_scale + column;
      output.quant_offset = storage_.quant_offset + column;
    }
    kernel_.store_row(c, output);
  }

  const WeightQuantProblem& problem_;
  const Plan& plan_;
  const Storage& storage_;
  const GemmKernel& kernel_;
  const WeightSource& weight_;
  int32_t digits_ = 1;  // those of the plan, or two and rests in place of three
};

int64_t weight_offset(const WeightQuantProblem& problem, int64_t index) {
  const anynpu_tensor& weight = problem.args->weight;
  int64_t bytes = 0;
  for (int axis = weight.ndim - 3; axis >= 0; --axis) {
    bytes += index % weight.shape[axis] * problem.weight.batch_bytes[axis];
    index /= weight.shape[axis];
  }
  return bytes;
}

int32_t check_all_data(const anynpu_weight_quant_matmul_args& args) {
  ANYNPU_TRY(check_data(kOp, "x", args.x));
  ANYNPU_TRY(check_data(kOp, "weight", args.weight));
  ANYNPU_TRY(check_data(kOp, "scale", args.scale));
  ANYNPU_TRY(check_data(kOp, "offset", args.offset));
  ANYNPU_TRY(check_data(kOp, "bias", args.bias));
  ANYNPU_TRY(check_data(kOp, "quant_scale", args.quant_scale));
  ANYNPU_TRY(check_data(kOp, "quant_offset", args.quant_offset));
  return check_data(kOp, "y", args.y);
}

int32_t read_prepacked(WeightQuantProblem* problem) {
  const anynpu_weight_quant_matmul_args& args = *problem->args;
  WeightSource& source = problem->weight.source;
  ANYNPU_TRY(view_packed32(kOp, static_cast<const uint8_t*>(args.weight.data), args.weight.shape[0], &source));
  if (source.k != problem->k || source.n != problem->n) {
    return fail(ANYNPU_BAD_SHAPE, "%s: prepacked weight is (%lld, %lld), but x has K %lld and y has N %lld", kOp,
                static_cast<long long>(source.k), static_cast<long long>(source.n), static_cast<long long>(problem->k),
                static_cast<long long>(problem->n));
  }
  if (source.bits == 4 && args.scale.dtype == ANYNPU_INT64) {
    return fail(ANYNPU_BAD_DTYPE, "%s: int64 scale needs int8 weights, got a prepacked int4 weight", kOp);
  }
  return ANYNPU_OK;
}

int32_t run(const WeightQuantProblem& problem, void* workspace, size_t workspace_bytes) {
  const GemmKernel& kernel = gemm_kernel();
  const Plan plan = make_plan(problem, kernel);
  const size_t needed = static_cast<size_t>(lay_out(problem, plan, nullptr).bytes);
  uint8_t* base = static_cast<uint8_t*>(workspace);
  if (base != nullptr) {
    const size_t skip = -reinterpret_cast<uintptr_t>(base) % kScratchAlignment;
    base = skip + needed <= workspace_bytes ? base + skip : nullptr;
  }
  if (base == nullptr) base = static_cast<uint8_t*>(scratch(ScratchSlot::main, needed));
  int32_t* fallback = nullptr;
  if (plan.scheme != Scheme::f32) {
    const size_t bytes = static_cast<size_t>(plan.chunk_rows * problem.k) * sizeof(float);
    fallback = static_cast<int32_t*>(scratch(ScratchSlot::fallback, std::max<size_t>(1, bytes)));
  }
  if (base == nullptr || (plan.scheme != Scheme::f32 && fallback == nullptr)) {
    return fail(ANYNPU_NO_MEMORY, "%s: no memory for %zu bytes of scratch", kOp, needed);
  }
  const Storage storage = lay_out(problem, plan, base);
  fill_blocks(problem.k, problem.group, storage.blocks);
  if (problem.has_bias) load_channels(kernel, problem.bias, 0, 0, problem.n, storage.bias);
  if (problem.has_quant) load_quantisation(problem, storage.quant_scale, storage.quant_offset);
  for (int64_t index = 0; index < problem.weight_count; ++index) {
    WeightSource weight = problem.weight.source;
    weight.data += problem.weight_count > 1 ? weight_offset(problem, index) : 0;
    Product product(problem, plan, storage, kernel, weight);
    for (int64_t row = 0; row < problem.rows; row += plan.chunk_rows) {
      product.run(index * problem.rows + row, std::min(plan.chunk_rows, problem.rows - row), fallback);
    }
  }
  return ANYNPU_OK;
}

}  // namespace
}  // namespace anynpu

using anynpu::fail;

extern "C" int32_t anynpu_weight_quant_matmul_check(const anynpu_weight_quant_matmul_args* args,
                                                    size_t* workspace_bytes) {
  if (args == nullptr || workspace_bytes == nullptr) return fail(ANYNPU_NULL_ARG, "weight_quant_matmul: null argument");
  *workspace_bytes = 0;
  anynpu::WeightQuantProblem problem;
  ANYNPU_TRY(anynpu::check_weight_quant_matmul(*args, &problem));
  if (anynpu::element_count(args->y) == 0) return ANYNPU_OK;
  const anynpu::Plan plan = anynpu::make_plan(problem, anynpu::gemm_kernel());
  *workspace_bytes = static_cast<size_t>(anynpu::lay_out(problem, plan, nullptr).bytes) + anynpu::kScratchAlignment;
  return ANYNPU_OK;
}

extern "C" int32_t anynpu_weight_quant_matmul(const anynpu_weight_quant_matmul_args* args, void* workspace,
                                              size_t workspace_bytes) {
  if (args == nullptr) return fail(ANYNPU_NULL_ARG, "weight_quant_matmul: null argument");
  anynpu::WeightQuantProblem problem;
  ANYNPU_TRY(anynpu::check_weight_quant_matmul(*args, &problem));
  ANYNPU_TRY(anynpu::check_all_data(*args));
  if (args->weight.dtype == ANYNPU_UINT8) ANYNPU_TRY(anynpu::read_prepacked(&problem));
  if (anynpu::element_count(args->y) == 0) return ANYNPU_OK;
  return anynpu::run(problem, workspace, workspace_bytes);
}
