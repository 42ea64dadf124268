// SPDX-License-Identifier: Apache-2.0
#include "ops/fused_attention/integer_attention.h"

#include <cmath>
#include <limits>

#include "core/carver.h"
#include "core/integer.h"
#include "core/parallel.h"
#include "ops/fused_attention/float_attention.h"
#include "simd/scalar.h"

namespace anynpu {
namespace {

using Args = FusedArgs;
using Sequence = FusedSequence;

constexpr float kHidden = -std::numeric_limits<float>::infinity();

const int8_t* row_of(const anynpu_tensor& codes, int64_t plane, int64_t row, int64_t head) {
  return static_cast<const int8_t*>(element(codes, offset_of(codes, plane, row, head)));
}

int32_t product(const int8_t* a, const int8_t* b, int64_t count) {
  int32_t sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

// One thread's memory: the scores of a row of one head, and the sums of its values, as integers and as floats.
struct Scratch {
  float* scores;
  int64_t* sums;
  float* result;
  int64_t size;  // bytes

  Scratch(const Args& args, uintptr_t memory) {
    Carver carver(memory);
    scores = carver.take<float>(capacity(args));
    sums = carver.take<int64_t>(args.v.shape[3]);
    result = carver.take<float>(args.v.shape[3]);
    size = carver.used();
  }
};

// The rows of one head of a sequence, one after the other.
class HeadRun {
 public:
  HeadRun(const Args& args, const Sequence& sequence, int64_t head, const Scratch& scratch)
      : args_(args), sequence_(sequence), head_(head), kv_head_(head * kv_heads(args) / q_heads(args)), to_(scratch) {}

  void row(int64_t row) const {
    float lse = 0;
    std::fill_n(to_.result, args_.v.shape[3], 0.0f);
    if (row < sequence_.rows) lse = attend(row);
    const int64_t at = sequence_.first_row + row;
    anynpu_tensor out = args_.out, sums = args_.lse;
    store_row(args_, to_.result, 1, head_, element(out, offset_of(out, sequence_.q_plane, at, head_)));
    if (!present(sums)) return;
    *static_cast<float*>(element(sums, offset_of(sums, sequence_.q_plane, at, head_))) = lse;
  }

 private:
  float factor(const anynpu_tensor& factors) const { return factor_at(factors, kv_head_ * step(factors, 2)); }

  // Leaves the result of a row, and returns its log-sum-exp.
  float attend(int64_t row) const {
    const FusedColumns seen = seen_columns(args_, sequence_, row);
    if (seen.count() == 0) return kHidden;
    const float maximum = score(row, seen);
    if (maximum == kHidden) return kHidden;
    float sum = 0;
    for (int64_t column = seen.first; column < seen.last; ++column) {
      to_.scores[column] = std::exp(to_.scores[column] - maximum);
      sum += to_.scores[column];
    }
    add_values(seen, sum + sunk_weight(args_, head_, maximum));
    return maximum + std::log(sum);
  }

  // Returns the largest.
  float score(int64_t row, FusedColumns seen) const {
    const int8_t* query = row_of(args_.q, sequence_.q_plane, sequence_.first_row + row, head_);
    const float scale = factor(args_.k_scale) * args_.softmax_scale;
    for (int64_t column = seen.first; column < seen.last; ++column) {
      const FusedPlace at = place_of(args_, sequence_, column);
      const int8_t* key = row_of(args_.k, at.plane, at.row, kv_head_);
      to_.scores[column] = static_cast<float>(product(query, key, args_.q.shape[3])) * scale;
    }
    float* first = to_.scores + seen.first;
    add_bias(args_, sequence_.batch, head_, row, seen.first, seen.count(), first);
    hide_masked(args_, sequence_.batch, head_, row, seen.first, seen.count(), first);
    return *std::max_element(first, first + seen.count());
  }

  // The exponentials / sum become int8, and their products with the values floats.
  void add_values(FusedColumns seen, float sum) const {
    const int64_t size = args_.v.shape[3];
    const float weight_scale = factor_at(args_.p_scale, 0), value_scale = factor(args_.v_scale);
    std::fill_n(to_.sums, size, int64_t{0});
    for (int64_t column = seen.first; column < seen.last; ++column) {
      const int32_t weight = int8_from_float(to_.scores[column] / sum * weight_scale);
      if (weight == 0) continue;
      const FusedPlace at = place_of(args_, sequence_, column);
      const int8_t* value = row_of(args_.v, at.plane, at.row, kv_head_);
      for (int64_t i = 0; i < size; ++i) to_.sums[i] += weight * value[i];
    }
    for (int64_t i = 0; i < size; ++i) to_.result[i] = static_cast<float>(to_.sums[i]) * value_scale;
  }

  const Args& args_;
  const Sequence& sequence_;
  const int64_t head_, kv_head_;
  const Scratch& to_;
};

}  // namespace

int64_t integer_attention_bytes(const FusedArgs& args, int64_t threads) { return threads * Scratch(args, 0).size; }

void attend_in_integers(const FusedArgs& args, const FusedSequence* sequences, int64_t threads, uintptr_t memory) {
  const int64_t heads = q_heads(args), items = heads * batch_size(args);
  const int64_t bytes = integer_attention_bytes(args, 1);
  parallel_tasks(std::min(threads, items), items, [&](int64_t item, int64_t thread) {
    const FusedSequence& sequence = sequences[item / heads];
    const Scratch scratch(args, memory + thread * bytes);
    const HeadRun run(args, sequence, item % heads, scratch);
    for (int64_t row = 0; row < sequence.slots; ++row) run.row(row);
  });
}

}  // namespace anynpu
