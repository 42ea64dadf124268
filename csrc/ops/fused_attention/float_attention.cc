// SPDX-License-Identifier: Apache-2.0
#include "ops/fused_attention/float_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/carver.h"
#include "core/integer.h"
#include "core/parallel.h"
#include "ops/fused_attention/kernel.h"
#include "ops/fused_attention/kv_rows.h"
#include "simd/scalar.h"

namespace anynpu {

ANYNPU_KERNELS(FusedKernel, fused_attention)

namespace {

constexpr int64_t kBlockQueries = 64;   // of one kv head, that share a work item
constexpr int64_t kSplitColumns = 128;  // of a sequence with few queries, and more where there are many
constexpr int64_t kMostSplits = 16;     // of all sequences, as long as they are fewer
constexpr int64_t kMostSplitSequences = 4096;
constexpr int64_t kTileBytes = 256 << 10;  // of rows of all heads, so that those to come fit beside them
constexpr int64_t kLeastTileRows = 16;
constexpr int64_t kItemsOfThread = 2;  // at least, so that a thread that is disturbed does less
constexpr int64_t kFinishFloats = 1 << 15;
constexpr int64_t kTogether = 64;  // values that become floats
constexpr float kHidden = -std::numeric_limits<float>::infinity();
using Args = FusedArgs;
using Sequence = FusedSequence;

// How the work is cut; by shapes and lengths alone, so that results do not depend on the threads.
struct Plan {
  int64_t group, positions, key_size, value_size, state_size, splits, split_rows;

  explicit Plan(const Args& args) {
    const int64_t rows = args.q.shape[1], batch = batch_size(args);
    group = q_heads(args) / kv_heads(args);
    positions = std::clamp<int64_t>(kBlockQueries / group, 1, std::max<int64_t>(1, rows));
    key_size = round_up(args.q.shape[3] + rope_size(args), kFusedPadding);
    value_size = round_up(args.v.shape[3], kFusedPadding);
    state_size = value_size + kFusedPadding;
    splits = batch > kMostSplitSequences ? 0 : std::max<int64_t>(1, kMostSplits / std::max<int64_t>(1, batch));
    split_rows = splits == 0 ? 0 : std::min(args.q.shape[0] * rows, batch * positions);
  }
  int64_t queries() const { return std::max(positions * group, kFusedFewQueries); }
  // Whether one item takes all heads, and whether more than one takes the columns.
  bool has_few_queries(const Args& args, const Sequence& sequence) const {
    return sequence.slots * group <= kFusedFewQueries && !has_codes(args);
  }
  bool may_split(const Sequence& sequence) const { return splits > 0 && sequence.slots <= positions; }
};

// The running softmax of some queries.
struct State {
  float *accumulator, *maximum, *weight_sum;  // [queries, value_size], [queries], [queries]

  State(float* memory, int64_t queries, int64_t value_size)
      : accumulator(memory), maximum(memory + queries * value_size), weight_sum(maximum + queries) {}
};

// The memory of one thread.
struct Scratch {
  float *q, *scores, *state;
  KvScratch kv;
  int64_t size;  // bytes

  Scratch(const Plan& plan, int64_t kv_heads, uintptr_t memory) {
    Carver carver(memory);
    q = carver.take<float>(std::max(plan.positions * plan.group, kFusedFewQueries * kv_heads) * plan.key_size);
    scores = carver.take<float>(plan.queries() * kFusedRows);
    state = carver.take<float>(plan.queries() * plan.state_size);
    kv.k = carver.take<float>(kFusedRows * plan.key_size);
    kv.v = carver.take<float>(kFusedRows * plan.value_size);
    kv.k_scale = carver.take<float>(plan.key_size);
    kv.k_offset = carver.take<float>(plan.key_size);
    kv.v_scale = carver.take<float>(plan.value_size);
    kv.v_offset = carver.take<float>(plan.value_size);
    kv.codes = carver.take<int8_t>(std::max(plan.key_size, plan.value_size));
    size = carver.used();
  }
  static int64_t bytes(const Args& args) { return Scratch(Plan(args), kv_heads(args), 0).size; }
};

// Attention of any kind, in float32.
class FloatRun {
 public:
  FloatRun(const Args& args, Sequence* sequences, uintptr_t memory, int64_t threads)
      : args_(args),
        plan_(args),
        kernel_(pick(kKernels)),
        sequences_(sequences),
        memory_(memory),
        states_(reinterpret_cast<float*>(memory + threads * Scratch::bytes(args))) {
    int64_t rows = 0;
    for (int64_t batch = 0; batch < batch_size(args); ++batch) {
      Sequence& sequence = sequences[batch];
      sequence.splits = 0;
      sequence.first_item = items_;
      sequence.first_state = rows;
      if (plan_.may_split(sequence)) {
        sequence.splits =
            std::clamp<int64_t>(ceil_divide(range(heads_of(sequence, 0, 1)).count(), kSplitColumns), 1, plan_.splits);
        rows += sequence.slots;
      }
      const int64_t head_items = kv_heads(args) / heads_of_item(sequence);
      sequence.parts = std::clamp<int64_t>(ceil_divide(kItemsOfThread * threads, batch_size(args) * head_items), 1,
                                           std::max<int64_t>(1, sequence.splits));
      if (sequence.splits == 0) sequence.parts = ceil_divide(sequence.slots, plan_.positions);
      items_ += head_items * sequence.parts;
    }
  }
  static int64_t state_bytes(const Args& args) {
    const Plan plan(args);
    return plan.splits * plan.split_rows * q_heads(args) * plan.state_size * sizeof(float);
  }

  int64_t items() const { return items_; }

  void item(int64_t index, int64_t thread) const {
    const Sequence* after =
        std::upper_bound(sequences_, sequences_ + batch_size(args_), index,
                         [](int64_t item, const Sequence& sequence) { return item < sequence.first_item; });
    const Sequence& sequence = *(after - 1);
    const Scratch scratch(plan_, kv_heads(args_), memory_ + thread * Scratch::bytes(args_));
    const int64_t part = (index - sequence.first_item) % sequence.parts;
    const int64_t heads = heads_of_item(sequence), head = (index - sequence.first_item) / sequence.parts * heads;
    if (sequence.splits == 0) {
      const int64_t first = part * plan_.positions;
      const Block block{sequence, head, 1, first, std::min(first + plan_.positions, sequence.slots)};
      attend(block, {0, 1, 1}, scratch, scratch.state, 0);
      return store(block, head, State(scratch.state, queries(block), plan_.value_size));
    }
    const int64_t all = sequence.splits, first = all * part / sequence.parts, last = all * (part + 1) / sequence.parts;
    attend(heads_of(sequence, head, heads), {first, last, all}, scratch, state(sequence, first, head),
           state(sequence, 1, 0) - state(sequence, 0, 0));
  }

  // Heads a thread.
  int64_t finish_grain() const {
    const int64_t floats = std::max<int64_t>(1, plan_.splits) * plan_.group * plan_.value_size;
    return std::max<int64_t>(1, kFinishFloats / floats);
  }

  // Joins the splits of one head of a sequence.
  void finish(const Sequence& sequence, int64_t head) const {
    if (sequence.splits == 0 || sequence.slots == 0) return;
    const Block block = heads_of(sequence, head, 1);
    const auto state_of = [&](int64_t split) {
      return State(state(sequence, split, head), queries(block), plan_.value_size);
    };
    const State sum = state_of(0);
    for (int64_t split = 1; split < sequence.splits; ++split) {
      for (int64_t query = 0; query < queries(block); ++query) add(state_of(split), query, sum);
    }
    store(block, head, sum);
  }

 private:
  // Some positions of the query heads of some kv heads.
  struct Block {
    const Sequence& sequence;
    int64_t first_head, heads, first, last;
    int64_t rows() const { return std::max<int64_t>(0, std::min(last, sequence.rows) - first); }
  };
  using Columns = FusedColumns;

  static Block heads_of(const Sequence& sequence, int64_t head, int64_t heads) {
    return {sequence, head, heads, 0, sequence.slots};
  }
  int64_t heads_of_item(const Sequence& sequence) const {
    return sequence.splits > 0 && plan_.has_few_queries(args_, sequence) ? kv_heads(args_) : 1;
  }
  // Of one kv head.
  int64_t queries(const Block& block) const { return (block.last - block.first) * plan_.group; }
  float* state(const Sequence& sequence, int64_t split, int64_t head) const {
    const int64_t first = sequence.first_state * plan_.splits + split * sequence.slots;
    return states_ + (first * kv_heads(args_) + head * sequence.slots) * plan_.group * plan_.state_size;
  }

  // What any row of a block sees.
  Columns range(const Block& block) const {
    if (block.rows() == 0) return {0, 0};
    Columns range = seen_columns(args_, block.sequence, block.first);
    range.last = std::max(range.last, seen_columns(args_, block.sequence, block.first + block.rows() - 1).last);
    return range;
  }
  // Some of the parts of its columns.
  struct Splits {
    int64_t first, last, all;
    Columns columns(Columns range, int64_t split) const {
      return {range.first + range.count() * split / all, range.first + range.count() * (split + 1) / all};
    }
  };

  // The states of the heads follow each other in `memory`, those of the next split split_floats behind them.
  void attend(const Block& block, const Splits& splits, const Scratch& scratch, float* memory,
              int64_t split_floats) const {
    const int64_t queries = this->queries(block), head_floats = queries * plan_.state_size;
    FusedTile tile{};
    tile.key_size = plan_.key_size;
    tile.value_size = plan_.value_size;
    tile.queries = static_cast<int32_t>(block.rows() * plan_.group);
    tile.scores = scratch.scores;
    load_q(block, scratch.q);
    KvRows rows(args_, kernel_, scratch.kv, block.sequence, block.first_head, block.heads,
                (kernel_.copies || tile.queries <= kFusedFewQueries) && KvRows::takes_in_place(args_));
    const Columns range = this->range(block);
    const int64_t most = tile_rows(block), end = splits.columns(range, splits.last - 1).last;
    for (int64_t split = splits.first; split < splits.last; ++split, memory += split_floats) {
      for (int64_t head = 0; head < block.heads; ++head) {
        clear(State(memory + head * head_floats, queries, plan_.value_size), queries);
      }
      const Columns columns = splits.columns(range, split);
      for (int64_t column = columns.first; column < columns.last; column += most) {
        const int64_t count = std::min(most, columns.last - column);
        rows.go_to(column, count, std::min(most, end - column - count));
        for (int64_t head = 0; head < block.heads; ++head) {
          const State state(memory + head * head_floats, queries, plan_.value_size);
          tile.q = scratch.q + head * tile.queries * plan_.key_size;
          tile.accumulator = state.accumulator;
          tile.maximum = state.maximum;
          tile.weight_sum = state.weight_sum;
          rows.load(block.first_head + head, &tile);
          kernel_.score(tile, args_.softmax_scale);
          hide(block, block.first_head + head, column, tile);
          kernel_.add(tile);
        }
      }
    }
  }

  void clear(const State& state, int64_t queries) const {
    std::fill_n(state.accumulator, queries * plan_.value_size, 0.0f);
    std::fill_n(state.maximum, queries, kHidden);
    std::fill_n(state.weight_sum, queries, 0.0f);
  }

  int64_t tile_rows(const Block& block) const {
    if (block.heads == 1) return kFusedRows;
    const int64_t bytes = (args_.k.shape[3] + args_.v.shape[3]) * block.heads * dtype_bits(args_.k.dtype) / 8;
    return std::clamp<int64_t>(kTileBytes / bytes, kLeastTileRows, kFusedRows);
  }

  void load_q(const Block& block, float* to) const {
    for (int64_t kv_head = block.first_head; kv_head < block.first_head + block.heads; ++kv_head) {
      for (int64_t row = block.first; row < block.first + block.rows(); ++row) {
        for (int64_t g = 0; g < plan_.group; ++g, to += plan_.key_size) {
          const int64_t head = kv_head * plan_.group + g, at = block.sequence.first_row + row;
          const int64_t size = args_.q.shape[3] + rope_size(args_);
          widen(args_.q, block.sequence.q_plane, at, head, to);
          if (present(args_.q_rope)) widen(args_.q_rope, block.sequence.q_plane, at, head, to + args_.q.shape[3]);
          std::fill(to + size, to + plan_.key_size, 0.0f);
        }
      }
    }
  }

  void widen(const anynpu_tensor& tensor, int64_t plane, int64_t row, int64_t head, float* to) const {
    kernel_.widen(tensor.dtype, element(tensor, offset_of(tensor, plane, row, head)), tensor.shape[3], to);
  }

  void hide(const Block& block, int64_t kv_head, int64_t column, const FusedTile& tile) const {
    float* scores = tile.scores;
    for (int64_t row = block.first; row < block.first + block.rows(); ++row) {
      const Columns range = seen_columns(args_, block.sequence, row);
      const int64_t first = std::clamp<int64_t>(range.first - column, 0, tile.rows);
      const int64_t last = std::clamp<int64_t>(range.last - column, first, tile.rows);
      for (int64_t g = 0; g < plan_.group; ++g, scores += kFusedRows) {
        std::fill(scores, scores + first, kHidden);
        std::fill(scores + last, scores + kFusedRows, kHidden);
        const int64_t head = kv_head * plan_.group + g, batch = block.sequence.batch;
        add_bias(args_, batch, head, row, column + first, last - first, scores + first);
        hide_masked(args_, batch, head, row, column + first, last - first, scores + first);
      }
    }
  }

  // The weighted sums of a query beside those of another split.
  void add(const State& from, int64_t query, const State& to) const {
    const float most = std::max(from.maximum[query], to.maximum[query]);
    if (from.weight_sum[query] == 0) return;
    const float from_factor = std::exp(from.maximum[query] - most);
    const float factor = to.weight_sum[query] == 0 ? 0 : std::exp(to.maximum[query] - most);
    kernel_.join(from.accumulator + query * plan_.value_size, from_factor, factor, plan_.value_size,
                 to.accumulator + query * plan_.value_size);
    to.weight_sum[query] = to.weight_sum[query] * factor + from.weight_sum[query] * from_factor;
    to.maximum[query] = most;
  }

  // Positions behind the sequence and those that see nothing become 0; their sums of exponentials are 1 and 0.
  void store(const Block& block, int64_t kv_head, const State& state) const {
    anynpu_tensor out = args_.out, lse = args_.lse;
    int64_t query = 0;
    for (int64_t row = block.first; row < block.last; ++row) {
      for (int64_t g = 0; g < plan_.group; ++g, ++query) {
        const int64_t head = kv_head * plan_.group + g, plane = block.sequence.q_plane,
                      at = block.sequence.first_row + row;
        const bool own = row < block.sequence.rows;
        const float sum = state.weight_sum[query];
        const float divisor = sum == 0 ? 1 : sum + sunk_weight(args_, head, state.maximum[query]);
        store_row(args_, state.accumulator + query * plan_.value_size, divisor, head,
                  element(out, offset_of(out, plane, at, head)));
        if (!present(lse)) continue;
        *static_cast<float*>(element(lse, offset_of(lse, plane, at, head))) =
            own ? state.maximum[query] + std::log(sum) : 0.0f;
      }
    }
  }

  const Args& args_;
  Plan plan_;
  const FusedKernel& kernel_;
  const Sequence* sequences_;
  uintptr_t memory_;
  float* states_;
  int64_t items_ = 0;
};

// Scales or offsets of some values of a head of the result; 0 if absent.
void load(const anynpu_tensor& factors, int64_t head, int64_t first, int64_t count, float* to) {
  if (!present(factors)) {
    std::fill_n(to, count, 0.0f);
    return;
  }
  const FusedKernel& kernel = pick(kKernels);
  const void* from = element(factors, head * step(factors, 0) + first * step(factors, 1));
  if (factors.shape[1] != 1) return kernel.widen(factors.dtype, from, count, to);
  kernel.widen(factors.dtype, from, 1, to);
  std::fill_n(to + 1, count - 1, to[0]);
}

}  // namespace

void add_bias(const FusedArgs& args, int64_t batch, int64_t head, int64_t row, int64_t column, int64_t count,
              float* scores) {
  if (!present(args.bias)) return;
  const anynpu_tensor& bias = args.bias;
  const int64_t at = batch * step(bias, 0) + head * step(bias, 1) + row * bias.strides[2] + column;
  float values[kTogether];
  for (int64_t first = 0; first < count; first += kTogether) {
    const int64_t some = std::min(kTogether, count - first);
    pick(kKernels).widen(bias.dtype, element(bias, at + first), some, values);
    for (int64_t i = 0; i < some; ++i) scores[first + i] += values[i];
  }
}

void hide_masked(const FusedArgs& args, int64_t batch, int64_t head, int64_t row, int64_t column, int64_t count,
                 float* scores) {
  if (!present(args.mask)) return;
  const anynpu_tensor& mask = args.mask;
  const int64_t at = batch * step(mask, 0) + head * step(mask, 1) + row * mask.strides[2] + column * mask.strides[3];
  const auto* hidden = static_cast<const uint8_t*>(mask.data) + at;
  for (int64_t i = 0; i < count; ++i) {
    if (hidden[i * mask.strides[3]] != 0) scores[i] = kHidden;
  }
}

float sunk_weight(const FusedArgs& args, int64_t head, float maximum) {
  return present(args.sink) ? std::exp(factor_at(args.sink, head * args.sink.strides[0]) - maximum) : 0.0f;
}

void store_row(const FusedArgs& args, float* sums, float divisor, int64_t head, void* to) {
  const int64_t size = args.out.shape[3];
  const FusedKernel& kernel = pick(kKernels);
  if (!present(args.out_scale)) return kernel.narrow(args.out.dtype, sums, divisor, size, to);
  kernel.narrow(ANYNPU_FLOAT32, sums, divisor, size, sums);
  auto* codes = static_cast<int8_t*>(to);
  float scales[kTogether], offsets[kTogether];
  for (int64_t first = 0; first < size; first += kTogether) {
    const int64_t count = std::min(kTogether, size - first);
    load(args.out_scale, head, first, count, scales);
    load(args.out_offset, head, first, count, offsets);
    for (int64_t i = 0; i < count; ++i) codes[first + i] = int8_from_float(sums[first + i] * scales[i] + offsets[i]);
  }
}

float factor_at(const anynpu_tensor& factors, int64_t offset) {
  float value;
  pick(kKernels).widen(factors.dtype, element(factors, offset), 1, &value);
  return value;
}

int64_t float_attention_bytes(const FusedArgs& args, int64_t threads) {
  return threads * Scratch::bytes(args) + FloatRun::state_bytes(args);
}

void attend_in_float(const FusedArgs& args, FusedSequence* sequences, int64_t threads, uintptr_t memory) {
  const FloatRun run(args, sequences, memory, threads);
  parallel_tasks(std::min(threads, run.items()), run.items(),
                 [&](int64_t item, int64_t thread) { run.item(item, thread); });
  const int64_t heads = kv_heads(args);
  parallel_for(heads * batch_size(args), run.finish_grain(), [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) run.finish(sequences[i / heads], i % heads);
  });
}

}  // namespace anynpu
