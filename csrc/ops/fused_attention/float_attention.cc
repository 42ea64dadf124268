// SPDX-License-Identifier: Apache-2.0
#include "ops/fused_attention/float_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/integer.h"
#include "core/parallel.h"
#include "core/scratch.h"
#include "ops/fused_attention/kernel.h"

namespace anynpu {

#define ANYNPU_KERNEL(tier) extern const FusedKernel fused_attention_##tier;
#include "ops/fused_attention/kernels.def"
#undef ANYNPU_KERNEL

namespace {

constexpr const FusedKernel* kKernels[] = {
#define ANYNPU_KERNEL(tier) &fused_attention_##tier,
#include "ops/fused_attention/kernels.def"
#undef ANYNPU_KERNEL
};

constexpr int64_t kBlockQueries = 64;  // of one kv head, that share a work item
constexpr int64_t kRowsAhead = kFusedRows;
constexpr int64_t kLine = 64;  // bytes that are read at once
constexpr float kHidden = -std::numeric_limits<float>::infinity();
using Args = FusedArgs;
using Sequence = FusedSequence;

// How the work is cut; by the shapes alone, so that results do not depend on the threads.
struct Plan {
  int64_t group, positions, key_size, value_size, queries;

  explicit Plan(const Args& args) {
    group = q_heads(args) / kv_heads(args);
    positions = std::clamp<int64_t>(kBlockQueries / group, 1, std::max<int64_t>(1, args.q.shape[1]));
    queries = positions * group;
    key_size = round_up(args.q.shape[3] + rope_size(args), kFusedPadding);
    value_size = round_up(args.v.shape[3], kFusedPadding);
  }
  int64_t items(const Args& args, const Sequence& sequence) const {
    return kv_heads(args) * ceil_divide(sequence.slots, positions);
  }
};

// The memory of one thread.
struct Scratch {
  float *q, *k, *v, *scores, *accumulator, *maximum, *weight_sum, *k_scale, *k_offset, *v_scale, *v_offset;
  uintptr_t end;

  Scratch(const Plan& plan, uintptr_t memory) : end(memory) {
    q = take(plan.queries * plan.key_size);
    k = take(kFusedRows * plan.key_size);
    v = take(kFusedRows * plan.value_size);
    scores = take(plan.queries * kFusedRows);
    accumulator = take(plan.queries * plan.value_size);
    maximum = take(plan.queries);
    weight_sum = take(plan.queries);
    k_scale = take(plan.key_size);
    k_offset = take(plan.key_size);
    v_scale = take(plan.value_size);
    v_offset = take(plan.value_size);
  }
  static int64_t bytes(const Plan& plan) { return static_cast<int64_t>(Scratch(plan, 0).end); }

 private:
  float* take(int64_t count) {
    float* part = reinterpret_cast<float*>(end);
    end += round_up(count * sizeof(float), kScratchAlignment);
    return part;
  }
};

// Attention of any kind, in float32.
class FloatRun {
 public:
  FloatRun(const Args& args, const Sequence* sequences, uintptr_t memory)
      : args_(args), plan_(args), kernel_(pick(kKernels)), sequences_(sequences), memory_(memory) {}

  void item(int64_t index, int64_t thread) const {
    const Sequence* after =
        std::upper_bound(sequences_, sequences_ + batch_size(args_), index,
                         [](int64_t item, const Sequence& sequence) { return item < sequence.first_item; });
    const Sequence& sequence = *(after - 1);
    const int64_t blocks = ceil_divide(sequence.slots, plan_.positions), at = index - sequence.first_item;
    const int64_t first = at % blocks * plan_.positions;
    const Block block{sequence, at / blocks, first, std::min(first + plan_.positions, sequence.slots)};
    attend(block, Scratch(plan_, memory_ + thread * Scratch::bytes(plan_)));
  }

 private:
  // Some positions of the query heads of one kv head.
  struct Block {
    const Sequence& sequence;
    int64_t kv_head, first, last;
    int64_t rows() const { return std::min(last, sequence.rows) - first; }
  };
  struct Columns {
    int64_t first, last;
  };

  // What position `row` sees before the mask.
  Columns seen(const Sequence& sequence, int64_t row) const {
    const int64_t at = row + (args_.from_end ? sequence.columns - sequence.rows : 0);
    return {std::max<int64_t>(0, at - limit(args_.before)), std::min(sequence.columns, at + limit(args_.after) + 1)};
  }

  void attend(const Block& block, const Scratch& scratch) const {
    FusedTile tile{
        plan_.key_size,  plan_.value_size,  0, 0, scratch.q, scratch.k, scratch.v, scratch.scores, scratch.accumulator,
        scratch.maximum, scratch.weight_sum};
    tile.queries = static_cast<int32_t>(std::max<int64_t>(0, block.rows()) * plan_.group);
    std::fill_n(scratch.accumulator, plan_.queries * plan_.value_size, 0.0f);
    std::fill_n(scratch.maximum, plan_.queries, kHidden);
    std::fill_n(scratch.weight_sum, plan_.queries, 0.0f);
    if (tile.queries > 0) {
      load_q(block, scratch);
      if (has_codes(args_)) load_channels(block.kv_head, scratch);
      Columns range = seen(block.sequence, block.first);
      range.last = std::max(range.last, seen(block.sequence, block.first + block.rows() - 1).last);
      for (int64_t column = range.first; column < range.last; column += kFusedRows) {
        tile.rows = static_cast<int32_t>(std::min<int64_t>(kFusedRows, range.last - column));
        load_rows(block, column, tile.rows, scratch);
        kernel_.score(tile, args_.softmax_scale);
        hide(block, column, tile);
        kernel_.add(tile);
      }
    }
    store(block, scratch);
  }

  void load_q(const Block& block, const Scratch& scratch) const {
    float* to = scratch.q;
    for (int64_t row = block.first; row < block.first + block.rows(); ++row) {
      for (int64_t g = 0; g < plan_.group; ++g, to += plan_.key_size) {
        const int64_t head = block.kv_head * plan_.group + g, at = block.sequence.first_row + row;
        widen(args_.q, block.sequence.q_plane, at, head, to);
        if (present(args_.q_rope)) widen(args_.q_rope, block.sequence.q_plane, at, head, to + args_.q.shape[3]);
        pad(to, args_.q.shape[3] + rope_size(args_), plan_.key_size);
      }
    }
  }

  void widen(const anynpu_tensor& tensor, int64_t plane, int64_t row, int64_t head, float* to) const {
    kernel_.widen(tensor.dtype, element(tensor, offset_of(tensor, plane, row, head)), tensor.shape[3], to);
  }
  static void pad(float* row, int64_t count, int64_t padded) { std::fill(row + count, row + padded, 0.0f); }

  // The factors that do not depend on the token.
  void load_channels(int64_t head, const Scratch& scratch) const {
    load_channels(args_.k_scale, head, 1, args_.k.shape[3], scratch.k_scale);
    load_channels(args_.k_offset, head, 0, args_.k.shape[3], scratch.k_offset);
    load_channels(args_.v_scale, head, 1, args_.v.shape[3], scratch.v_scale);
    load_channels(args_.v_offset, head, 0, args_.v.shape[3], scratch.v_offset);
  }
  void load_channels(const anynpu_tensor& factors, int64_t head, float otherwise, int64_t count, float* to) const {
    if (!present(factors) || of_tokens(factors)) {
      std::fill_n(to, count, otherwise);
      return;
    }
    for (int64_t i = 0; i < count; ++i) to[i] = factor_at(factors, head * step(factors, 2) + i * step(factors, 3));
  }
  // A row of keys and values where it lies.
  struct Place {
    int64_t plane, row;
  };
  Place place(const Sequence& sequence, int64_t column) const {
    if (!is_paged(args_)) return {sequence.kv_plane, sequence.first_column + column};
    const int64_t block_size = args_.k.shape[1];
    return {block_at(args_, sequence.batch, column / block_size), column % block_size};
  }

  float row_factor(const anynpu_tensor& factors, Place at, int64_t head, float otherwise) const {
    if (!of_tokens(factors)) return otherwise;
    return factor_at(factors, at.plane * step(factors, 0) + at.row * step(factors, 1) + head * step(factors, 2));
  }

  void load_rows(const Block& block, int64_t column, int32_t rows, const Scratch& scratch) const {
    const int64_t rope_at = args_.k.shape[3];
    float *k = scratch.k, *v = scratch.v;
    for (int64_t at = column; at < column + rows; ++at, k += plan_.key_size, v += plan_.value_size) {
      fetch(block, at + kRowsAhead);
      const Place from = place(block.sequence, at);
      if (has_codes(args_)) {
        dequantise(args_.k, args_.k_scale, args_.k_offset, {scratch.k_scale, scratch.k_offset, 1, 0}, from,
                   block.kv_head, k);
        dequantise(args_.v, args_.v_scale, args_.v_offset, {scratch.v_scale, scratch.v_offset, 1, 0}, from,
                   block.kv_head, v);
      } else {
        widen(args_.k, from.plane, from.row, block.kv_head, k);
        widen(args_.v, from.plane, from.row, block.kv_head, v);
        if (present(args_.k_rope)) widen(args_.k_rope, from.plane, from.row, block.kv_head, k + rope_at);
      }
      pad(k, rope_at + rope_size(args_), plan_.key_size);
      pad(v, args_.v.shape[3], plan_.value_size);
    }
  }

  // Rows of a head lie apart, so that no processor foresees them.
  void fetch(const Block& block, int64_t column) const {
    if (column >= block.sequence.columns) return;
    const Place from = place(block.sequence, column);
    fetch(args_.k, from, block.kv_head);
    fetch(args_.v, from, block.kv_head);
  }
  static void fetch(const anynpu_tensor& tensor, Place from, int64_t head) {
    const auto* row = static_cast<const uint8_t*>(element(tensor, offset_of(tensor, from.plane, from.row, head)));
    const int64_t bytes = tensor.shape[3] * dtype_bits(tensor.dtype) / 8;
    for (int64_t i = 0; i < bytes; i += kLine) __builtin_prefetch(row + i, 0, 2);
  }

  void dequantise(const anynpu_tensor& tensor, const anynpu_tensor& scale, const anynpu_tensor& offset,
                  FusedCodes codes, Place place, int64_t head, float* to) const {
    codes.row_scale = row_factor(scale, place, head, 1);
    codes.row_offset = row_factor(offset, place, head, 0);
    const auto* from = static_cast<const int8_t*>(element(tensor, offset_of(tensor, place.plane, place.row, head)));
    kernel_.dequantise(from, codes, tensor.shape[3], to);
  }

  void hide(const Block& block, int64_t column, const FusedTile& tile) const {
    float* scores = tile.scores;
    for (int64_t row = block.first; row < block.first + block.rows(); ++row) {
      const Columns range = seen(block.sequence, row);
      const int64_t first = std::clamp<int64_t>(range.first - column, 0, tile.rows);
      const int64_t last = std::clamp<int64_t>(range.last - column, first, tile.rows);
      for (int64_t g = 0; g < plan_.group; ++g, scores += kFusedRows) {
        std::fill(scores, scores + first, kHidden);
        std::fill(scores + last, scores + kFusedRows, kHidden);
        if (!present(args_.mask)) continue;
        const int64_t head = block.kv_head * plan_.group + g;
        const int64_t from = block.sequence.batch * step(args_.mask, 0) + head * step(args_.mask, 1) +
                             row * args_.mask.strides[2] + column * args_.mask.strides[3];
        const auto* hidden = static_cast<const uint8_t*>(args_.mask.data) + from;
        for (int64_t i = first; i < last; ++i) {
          if (hidden[i * args_.mask.strides[3]] != 0) scores[i] = kHidden;
        }
      }
    }
  }

  // The weight of the sink beside those of scores up to `maximum`.
  float sunk(int64_t head, float maximum) const {
    return present(args_.sink) ? std::exp(factor_at(args_.sink, head * args_.sink.strides[0]) - maximum) : 0.0f;
  }

  // Positions behind the sequence and those that see nothing become 0; their sums of exponentials are 1 and 0.
  void store(const Block& block, const Scratch& scratch) const {
    anynpu_tensor out = args_.out, lse = args_.lse;
    int64_t query = 0;
    for (int64_t row = block.first; row < block.last; ++row) {
      for (int64_t g = 0; g < plan_.group; ++g, ++query) {
        const int64_t head = block.kv_head * plan_.group + g, plane = block.sequence.q_plane,
                      at = block.sequence.first_row + row;
        const bool own = row < block.sequence.rows;
        const float sum = scratch.weight_sum[query];
        const float divisor = sum == 0 ? 1 : sum + sunk(head, scratch.maximum[query]);
        kernel_.narrow(out.dtype, scratch.accumulator + query * plan_.value_size, divisor, out.shape[3],
                       element(out, offset_of(out, plane, at, head)));
        if (!present(lse)) continue;
        *static_cast<float*>(element(lse, offset_of(lse, plane, at, head))) =
            own ? scratch.maximum[query] + std::log(sum) : 0.0f;
      }
    }
  }

  const Args& args_;
  Plan plan_;
  const FusedKernel& kernel_;
  const Sequence* sequences_;
  uintptr_t memory_;
};

}  // namespace

float factor_at(const anynpu_tensor& factors, int64_t offset) {
  float value;
  pick(kKernels).widen(factors.dtype, element(factors, offset), 1, &value);
  return value;
}

int64_t float_attention_bytes(const FusedArgs& args) { return Scratch::bytes(Plan(args)); }

int64_t float_attention_items(const FusedArgs& args, const FusedSequence& sequence) {
  return Plan(args).items(args, sequence);
}

void attend_in_float(const FusedArgs& args, const FusedSequence* sequences, int64_t items, int64_t threads,
                     uintptr_t memory) {
  const FloatRun floats(args, sequences, memory);
  parallel_tasks(std::min(threads, items), items, [&](int64_t item, int64_t thread) { floats.item(item, thread); });
}

}  // namespace anynpu
