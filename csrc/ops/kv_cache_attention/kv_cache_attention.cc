// SPDX-License-Identifier: Apache-2.0
#include "ops/kv_cache_attention/kv_cache_attention.h"

#include <algorithm>
#include <limits>

#include "core/carver.h"
#include "core/integer.h"
#include "core/parallel.h"
#include "core/scratch.h"
#include "ops/kv_cache_attention/kernel.h"

namespace anynpu {

ANYNPU_KERNELS(AttentionKernel, kv_cache_attention)

namespace {

constexpr const char* kOp = "kv_cache_attention";
constexpr int64_t kSplitRows = 256;    // of a sequence, when few queries share them; a choice by shape, not by threads
constexpr int64_t kFewQueries = 16;    // of one kv head: up to here the rows are split, not the queries
constexpr int64_t kBlockQueries = 64;  // of one kv head, that share a work item
constexpr int64_t kGrain = 1 << 16;    // codes a thread; below it a second thread costs more than it gives
using Args = KvCacheArgs;

// How the work is cut: into items of a batch, a range of kv heads, a block of query positions and a split of the rows.
// The cut of positions and rows depends on shapes and lengths alone, so that results do not depend on the threads.
struct Plan {
  int64_t group, padded, positions, blocks, splits, split_rows, heads, head_groups, items, queries, digits;
  bool reads_runs;

  Plan(const Args& args, int64_t longest, int threads) {
    const int64_t length = query_length(args), all_heads = kv_heads(args);
    group = q_heads(args) / all_heads;
    padded = round_up(head_size(args), kAttentionPadding);
    const bool few = length * group <= kFewQueries;
    positions = few ? length : std::max<int64_t>(1, kBlockQueries / group);
    positions = std::min(positions, length);
    queries = positions * group;
    digits = args.q.dtype == ANYNPU_FLOAT32 ? 2 : 1;  // what a 16-bit q is rounded to is coarser than one digit
    reads_runs = queries * digits <= kAttentionFewRows && pick(kKernels).reads_runs;
    blocks = (length + positions - 1) / positions;
    splits = few ? std::max<int64_t>(1, (longest + kSplitRows - 1) / kSplitRows) : 1;
    split_rows = splits == 1 ? longest : kSplitRows;
    const int64_t units = batch_size(args) * blocks * splits;
    const bool side_by_side = args.k_cache.strides[2] == head_size(args);
    const auto busy = [&](int64_t count) { return count >= 2 * threads || count % threads == 0; };
    head_groups = few && side_by_side ? 1 : all_heads;
    while (head_groups < all_heads && !busy(units * head_groups)) ++head_groups;
    heads = (all_heads + head_groups - 1) / head_groups;
    head_groups = (all_heads + heads - 1) / heads;
    items = units * head_groups;
  }
  // Whole lines of the caches: what two threads write to one of them waits for each other.
  int64_t state_floats() const { return round_up(queries * (padded + 2), kScratchAlignment / sizeof(float)); }
  int64_t state_floats_all(const Args& args) const {
    return splits == 1 ? 0 : batch_size(args) * kv_heads(args) * splits * state_floats();
  }
};

// The memory of one thread.
struct Scratch {
  int64_t* folded;  // the item whose queries q are, or -1
  int16_t* q;       // [heads, queries, digits, padded]
  float* q_steps;   // [heads, queries, digits]
  float* states;    // [heads], used when the rows are not split
  float* scores;    // as in AttentionTile, from here on
  float* maxima;
  int16_t* weights;
  float* weight_steps;
  int32_t* totals;
  int8_t* pairs;
  int32_t* visible;
  int64_t* offsets;
  int64_t size;  // bytes

  Scratch(const Plan& plan, uintptr_t memory) {
    Carver carver(memory);
    const int64_t digit_rows = plan.queries * plan.digits;
    folded = carver.take<int64_t>(1);
    q = carver.take<int16_t>(plan.heads * digit_rows * plan.padded);
    q_steps = carver.take<float>(plan.heads * digit_rows);
    states = carver.take<float>(plan.heads * plan.state_floats());
    scores = carver.take<float>(plan.heads * plan.queries * kAttentionTileRows);
    maxima = carver.take<float>(plan.queries);
    weights = carver.take<int16_t>(plan.heads * digit_rows * kAttentionTileRows);
    weight_steps = carver.take<float>(plan.heads * digit_rows);
    totals = carver.take<int32_t>(plan.heads * kAttentionFewRows * std::max<int64_t>(plan.padded, kAttentionTileRows));
    pairs = carver.take<int8_t>(kAttentionTileRows * plan.padded);
    visible = carver.take<int32_t>(plan.queries);
    offsets = carver.take<int64_t>(kAttentionTileRows + kAttentionMostRowsAhead);
    size = carver.used();
  }
  static int64_t bytes(const Plan& plan) { return Scratch(plan, 0).size; }
};

int threads_for(const Args& args, int64_t longest) {
  const int64_t work = batch_size(args) * longest * q_heads(args) * head_size(args);
  return work <= kGrain ? 1 : thread_count(std::numeric_limits<int32_t>::max(), 1);
}

int64_t state_bytes(const Args& args, const Plan& plan) {
  return round_up(plan.state_floats_all(args) * sizeof(float), kScratchAlignment);
}

size_t memory_for(const Args& args, const Plan& plan, int threads) {
  return state_bytes(args, plan) + threads * Scratch::bytes(plan);
}

size_t workspace_size(const Args& args) {
  if (element_count(args.q) == 0) return 0;
  const int64_t longest = capacity(args);  // lengths are not known yet
  const int threads = threads_for(args, longest);
  return memory_for(args, Plan(args, longest, threads), threads);
}

AttentionFloat float_kind(int32_t dtype) {
  return dtype == ANYNPU_FLOAT32 ? kAttentionFloat32 : dtype == ANYNPU_FLOAT16 ? kAttentionFloat16 : kAttentionBFloat16;
}

class Run {
 public:
  Run(const Args& args, const Plan& plan, void* memory)
      : args_(args),
        plan_(plan),
        kernel_(pick(kKernels)),
        states_(static_cast<float*>(memory)),
        slots_(reinterpret_cast<uintptr_t>(memory) + state_bytes(args, plan)),
        slot_bytes_(Scratch::bytes(plan)) {}

  int64_t items() const { return plan_.items; }

  void forget(int64_t thread) const { *scratch_of(thread).folded = -1; }

  void item(int64_t index, int64_t thread) const {
    const Scratch scratch = scratch_of(thread);
    const Item item = item_at(index);
    if (*scratch.folded < 0 || !item.has_queries_of(item_at(*scratch.folded))) fold_q(item, scratch);
    *scratch.folded = index;
    run_item(item, scratch);
  }

  // Joins the splits of one batch and kv head.
  void join(int64_t batch, int64_t head) const {
    if (plan_.splits == 1) return;
    const AttentionState first = split_state(batch, head, 0);
    finish(batch, head, 0, query_length(args_), first);
  }

 private:
  Scratch scratch_of(int64_t thread) const { return {plan_, slots_ + thread * slot_bytes_}; }

  struct Item {
    int64_t batch, split, first_head, last_head, first_position, last_position, first_row, last_row;
    bool in_runs;
    bool has_queries_of(const Item& other) const {
      return batch == other.batch && first_head == other.first_head && first_position == other.first_position;
    }
  };

  Item item_at(int64_t index) const {
    Item item;
    const int64_t head_group = plan_.splits > 1 ? index % plan_.head_groups : index / plan_.blocks % plan_.head_groups;
    item.split = plan_.splits > 1 ? index / plan_.head_groups % plan_.splits : 0;
    const int64_t block = plan_.splits > 1 ? 0 : index % plan_.blocks;
    item.batch = index / (plan_.head_groups * plan_.splits * plan_.blocks);
    item.first_head = head_group * plan_.heads;
    item.last_head = std::min(item.first_head + plan_.heads, kv_heads(args_));
    item.first_position = block * plan_.positions;
    item.last_position = std::min(item.first_position + plan_.positions, query_length(args_));
    item.first_row = std::max(item.split * plan_.split_rows, start_of(args_, item.batch));
    item.last_row = std::min((item.split + 1) * plan_.split_rows, rows_seen(item.batch, item.last_position - 1));
    item.in_runs = plan_.reads_runs && item.last_row <= rows_seen(item.batch, item.first_position);
    return item;
  }

  // Query position s sees the rows before this one.
  int64_t rows_seen(int64_t batch, int64_t position) const {
    const int64_t length = length_of(args_, batch);
    return args_.causal ? length - query_length(args_) + position + 1 : length;
  }

  AttentionState state_at(float* memory) const {
    return {memory, memory + plan_.queries * plan_.padded, memory + plan_.queries * (plan_.padded + 1)};
  }
  AttentionState split_state(int64_t batch, int64_t head, int64_t split) const {
    return state_at(states_ + ((batch * kv_heads(args_) + head) * plan_.splits + split) * plan_.state_floats());
  }

  void reset(const AttentionState& state) const {
    std::fill_n(state.accumulator, plan_.queries * plan_.padded, 0.0f);
    std::fill_n(state.maximum, plan_.queries, -std::numeric_limits<float>::infinity());
    std::fill_n(state.weight_sum, plan_.queries, 0.0f);
  }

  // q times what turns codes of k into scores.
  void fold_q(const Item& item, const Scratch& scratch) const {
    const int64_t digit_rows = plan_.queries * plan_.digits;
    for (int64_t head = item.first_head; head < item.last_head; ++head) {
      const int64_t row = (head - item.first_head) * digit_rows;
      fold_head(item, head, scratch.q + row * plan_.padded, scratch.q_steps + row);
    }
  }

  void fold_head(const Item& item, int64_t head, int16_t* to, float* steps) const {
    AttentionFold fold{};
    fold.head_size = head_size(args_);
    fold.padded = plan_.padded;
    fold.scale = static_cast<const float*>(args_.scale_k.data) + head * args_.scale_k.strides[0];
    fold.scale_stride = args_.scale_k.strides[1];
    fold.q_stride = args_.q.strides[3];
    fold.softmax_scale = args_.softmax_scale;
    fold.digits = static_cast<int32_t>(plan_.digits);
    for (int64_t position = item.first_position; position < item.last_position; ++position) {
      for (int64_t g = 0; g < plan_.group; ++g, to += plan_.digits * plan_.padded, steps += plan_.digits) {
        const int64_t from = item.batch * args_.q.strides[0] + position * args_.q.strides[1] +
                             (head * plan_.group + g) * args_.q.strides[2];
        fold.q = static_cast<const char*>(args_.q.data) + from * (dtype_bits(args_.q.dtype) / 8);
        fold.to = to;
        fold.steps = steps;
        kernel_.fold[float_kind(args_.q.dtype)](fold);
      }
    }
  }

  // Offset of a row of sequence `batch` in both caches.
  int64_t row_offset(int64_t batch, int64_t row) const {
    const int64_t rows = args_.k_cache.shape[1], *strides = args_.k_cache.strides;
    const int64_t plane = is_paged(args_) ? int_at(args_.block_table, batch, row / rows) : batch;
    return plane * strides[0] + (is_paged(args_) ? row % rows : row) * strides[1];
  }

  void run_item(const Item& item, const Scratch& scratch) const {
    AttentionTile tile = empty_tile(item, scratch);
    for (int32_t head = 0; head < tile.heads; ++head) reset(tile.state.after(head * tile.state_stride));
    for (int64_t row = item.first_row; row < item.last_row; row += kAttentionTileRows) {
      tile.rows = static_cast<int32_t>(std::min<int64_t>(kAttentionTileRows, item.last_row - row));
      set_visible(item, row, tile, scratch);
      const int64_t rows_left = length_of(args_, item.batch) - row;
      tile.rows_known = static_cast<int32_t>(std::min<int64_t>(tile.rows + kernel_.rows_ahead, rows_left));
      set_offsets(item, row, tile, scratch);
      kernel_.tile(tile);
    }
    if (plan_.splits > 1) return;
    for (int32_t head = 0; head < tile.heads; ++head) {
      finish(item.batch, item.first_head + head, item.first_position, item.last_position,
             tile.state.after(head * tile.state_stride));
    }
  }

  AttentionTile empty_tile(const Item& item, const Scratch& scratch) const {
    AttentionTile tile{};
    tile.head_size = head_size(args_);
    tile.padded = plan_.padded;
    tile.queries = static_cast<int32_t>((item.last_position - item.first_position) * plan_.group);
    tile.digits = static_cast<int32_t>(plan_.digits);
    tile.offsets = scratch.offsets;
    tile.visible = scratch.visible;
    tile.scores = scratch.scores;
    tile.maxima = scratch.maxima;
    tile.weights = scratch.weights;
    tile.weight_steps = scratch.weight_steps;
    tile.totals = scratch.totals;
    tile.pairs = scratch.pairs;
    tile.heads = static_cast<int32_t>(item.last_head - item.first_head);
    tile.k = static_cast<const int8_t*>(args_.k_cache.data) + item.first_head * args_.k_cache.strides[2];
    tile.v = static_cast<const int8_t*>(args_.v_cache.data) + item.first_head * args_.k_cache.strides[2];
    tile.q = scratch.q;
    tile.q_steps = scratch.q_steps;
    tile.state = plan_.splits > 1 ? split_state(item.batch, item.first_head, item.split) : state_at(scratch.states);
    tile.state_stride = (plan_.splits > 1 ? plan_.splits : 1) * plan_.state_floats();
    return tile;
  }

  void set_visible(const Item& item, int64_t row, const AttentionTile& tile, const Scratch& scratch) const {
    for (int32_t query = 0; query < tile.queries; ++query) {
      const int64_t seen = rows_seen(item.batch, item.first_position + query / plan_.group) - row;
      scratch.visible[query] = static_cast<int32_t>(std::clamp<int64_t>(seen, 0, tile.rows));
    }
  }

  // Of the rows of a tile in the order in which the kernel takes them, and of those that it takes next.
  void set_offsets(const Item& item, int64_t row, const AttentionTile& tile, const Scratch& scratch) const {
    order_rows(item, row, tile.rows, tile.rows, scratch.offsets);
    const int64_t next = row + tile.rows,
                  rows = std::min<int64_t>(kAttentionTileRows, length_of(args_, item.batch) - next);
    order_rows(item, next, rows, tile.rows_known - tile.rows, scratch.offsets + tile.rows);
  }

  // Offsets of the first `count` of a tile of `rows`, from `first` on.
  void order_rows(const Item& item, int64_t first, int64_t rows, int64_t count, int64_t* offsets) const {
    const int64_t run = item.in_runs ? rows / kAttentionRuns : 0;
    for (int64_t i = 0; i < count; ++i) {
      const bool in_run = i < run * kAttentionRuns;
      offsets[i] = row_offset(item.batch, first + (in_run ? i % kAttentionRuns * run + i / kAttentionRuns : i));
    }
  }

  void finish(int64_t batch, int64_t head, int64_t first_position, int64_t last_position,
              const AttentionState& state) const {
    const bool offsets = present(args_.offset_v);
    AttentionFinish finish{};
    finish.head_size = head_size(args_);
    finish.splits = plan_.splits;
    finish.stride = plan_.state_floats();
    finish.scale_v = static_cast<const float*>(args_.scale_v.data) + head * args_.scale_v.strides[0];
    finish.scale_stride = args_.scale_v.strides[1];
    if (offsets) {
      finish.offset_v = static_cast<const float*>(args_.offset_v.data) + head * args_.offset_v.strides[0];
      finish.offset_stride = args_.offset_v.strides[1];
    }
    int64_t query = 0;
    for (int64_t position = first_position; position < last_position; ++position) {
      for (int64_t g = 0; g < plan_.group; ++g, ++query) {
        finish.state = {state.accumulator + query * plan_.padded, state.maximum + query, state.weight_sum + query};
        const int64_t *strides = args_.out.strides,
                      to = batch * strides[0] + position * strides[1] + (head * plan_.group + g) * strides[2];
        finish.output = static_cast<char*>(args_.out.data) + to * (dtype_bits(args_.q.dtype) / 8);
        kernel_.finish[float_kind(args_.q.dtype)](finish);
      }
    }
  }

  const Args& args_;
  Plan plan_;
  const AttentionKernel& kernel_;
  float* states_;
  uintptr_t slots_;
  int64_t slot_bytes_;
};

int32_t run(const Args& args, void* workspace, size_t workspace_bytes) {
  int64_t longest = 0;
  ANYNPU_TRY(check_kv_cache_data(args, &longest));
  if (element_count(args.q) == 0) return ANYNPU_OK;
  const int threads = threads_for(args, longest);
  const Plan plan(args, longest, threads);
  const size_t bytes = memory_for(args, plan, threads);
  void* memory = workspace != nullptr && workspace_bytes >= bytes ? workspace : scratch(ScratchSlot::main, bytes);
  if (memory == nullptr) return fail(ANYNPU_NO_MEMORY, "%s: no memory for %zu bytes of workspace", kOp, bytes);
  const Run run(args, plan, memory);
  for (int thread = 0; thread < threads; ++thread) run.forget(thread);
  parallel_tasks(threads, run.items(), [&](int64_t index, int64_t thread) { run.item(index, thread); });
  const int64_t heads = kv_heads(args);
  parallel_for(plan.splits == 1 ? 0 : batch_size(args) * heads,
               std::max<int64_t>(1, (1 << 14) / (plan.splits * plan.state_floats())), [&](int64_t begin, int64_t end) {
                 for (int64_t unit = begin; unit < end; ++unit) run.join(unit / heads, unit % heads);
               });
  return ANYNPU_OK;
}

}  // namespace
}  // namespace anynpu

extern "C" int32_t anynpu_kv_cache_attention_check(const anynpu_kv_cache_attention_args* args,
                                                   size_t* workspace_bytes) {
  if (args == nullptr || workspace_bytes == nullptr) {
    return anynpu::fail(ANYNPU_NULL_ARG, "kv_cache_attention: null argument");
  }
  *workspace_bytes = 0;
  ANYNPU_TRY(anynpu::check_kv_cache_attention(*args));
  *workspace_bytes = anynpu::workspace_size(*args);
  return ANYNPU_OK;
}

extern "C" int32_t anynpu_kv_cache_attention(const anynpu_kv_cache_attention_args* args, void* workspace,
                                             size_t workspace_bytes) {
  size_t wanted = 0;
  ANYNPU_TRY(anynpu_kv_cache_attention_check(args, &wanted));
  return anynpu::run(*args, workspace, workspace_bytes);
}
