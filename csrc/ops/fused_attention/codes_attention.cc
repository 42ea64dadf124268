// SPDX-License-Identifier: Apache-2.0
#include "ops/fused_attention/codes_attention.h"

#include <algorithm>
#include <cstring>

#include "core/integer.h"
#include "core/scratch.h"

namespace anynpu {
namespace {

using Args = FusedArgs;
using Sequence = FusedSequence;

bool is_causal(const Args& args) { return args.from_end != 0 && args.after == 0; }

// One call for all sequences where they have as many queries, otherwise a call for each.
class CodesRun {
 public:
  CodesRun(const Args& args, const Sequence* sequences, uintptr_t memory)
      : args_(args),
        sequences_(sequences),
        lengths_(reinterpret_cast<int32_t*>(memory)),
        factors_(reinterpret_cast<float*>(memory + round_up(batch_size(args) * sizeof(int32_t), kScratchAlignment))) {}
  static int64_t bytes(const Args& args) {
    return round_up(batch_size(args) * sizeof(int32_t), kScratchAlignment) + 4 * count(args) * sizeof(float);
  }

  int32_t run() const {
    const int64_t batch = batch_size(args_);
    Call call{};
    call.q = args_.q;
    call.k_cache = args_.k;
    call.v_cache = args_.v;
    call.out = args_.out;
    call.block_table = args_.block_table;
    call.softmax_scale = args_.softmax_scale;
    call.causal = is_causal(args_);
    call.scale_k = load(args_.k_scale, 1, 0);
    call.scale_v = load(args_.v_scale, 1, 1);
    call.offset_k = load(args_.k_offset, -1, 2);
    call.offset_v = load(args_.v_offset, -1, 3);
    const bool together = !is_packed(args_) && std::all_of(sequences_, sequences_ + batch, [&](const Sequence& each) {
      return each.rows == args_.q.shape[1];
    });
    if (together) return attend(call, 0, batch);
    for (int64_t index = 0; index < batch; ++index) {
      const Sequence& sequence = sequences_[index];
      clear_behind(sequence);
      if (sequence.rows > 0) ANYNPU_TRY(attend(of_sequence(call, sequence), index, 1));
    }
    return ANYNPU_OK;
  }

 private:
  using Call = anynpu_kv_cache_attention_args;

  static int64_t count(const Args& args) { return kv_heads(args) * args.k.shape[3]; }

  // sign * factors as floats of heads and channels.
  anynpu_tensor load(const anynpu_tensor& factors, float sign, int64_t place) const {
    if (!present(factors)) return {};
    anynpu_tensor made{factors_ + place * count(args_),     ANYNPU_FLOAT32,       ANYNPU_ND, 2, 0,
                       {kv_heads(args_), args_.k.shape[3]}, {args_.k.shape[3], 1}};
    auto* to = static_cast<float*>(made.data);
    for (int64_t head = 0; head < kv_heads(args_); ++head) {
      for (int64_t i = 0; i < args_.k.shape[3]; ++i) {
        *to++ = sign * factor_at(factors, head * step(factors, 2) + i * step(factors, 3));
      }
    }
    return made;
  }

  int32_t attend(Call call, int64_t first, int64_t batch) const {
    for (int64_t index = 0; index < batch; ++index) {
      lengths_[index] = static_cast<int32_t>(sequences_[first + index].columns);
    }
    call.lengths = {lengths_, ANYNPU_INT32, ANYNPU_ND, 1, 0, {batch}, {1}};
    return anynpu_kv_cache_attention(&call, nullptr, 0);
  }

  static void narrow_to(anynpu_tensor& tensor, int axis, int64_t first, int64_t size) {
    tensor.data = element(tensor, first * tensor.strides[axis]);
    tensor.shape[axis] = size;
  }

  Call of_sequence(Call call, const Sequence& sequence) const {
    for (auto* tensor : {&call.q, &call.out}) {
      narrow_to(*tensor, 0, sequence.q_plane, 1);
      narrow_to(*tensor, 1, sequence.first_row, sequence.rows);
    }
    if (is_paged(args_)) {
      narrow_to(call.block_table, 0, sequence.batch, 1);
      return call;
    }
    for (auto* tensor : {&call.k_cache, &call.v_cache}) {
      narrow_to(*tensor, 0, sequence.kv_plane, 1);
      narrow_to(*tensor, 1, sequence.first_column, sequence.columns);
    }
    return call;
  }

  void clear_behind(const Sequence& sequence) const {
    anynpu_tensor out = args_.out;
    const int64_t bytes = out.shape[3] * dtype_bits(out.dtype) / 8;
    for (int64_t row = sequence.rows; row < sequence.slots; ++row) {
      for (int64_t head = 0; head < out.shape[2]; ++head) {
        std::memset(element(out, offset_of(out, sequence.q_plane, sequence.first_row + row, head)), 0, bytes);
      }
    }
  }

  const Args& args_;
  const Sequence* sequences_;
  int32_t* lengths_;
  float* factors_;
};

}  // namespace

int64_t codes_attention_bytes(const FusedArgs& args) { return CodesRun::bytes(args); }

bool codes_attention_takes(const FusedArgs& args) {
  if (args.k.dtype != ANYNPU_INT8 || args.q.shape[3] != args.v.shape[3] || present(args.mask) || present(args.lse))
    return false;
  if (present(args.sink) || present(args.out_scale) || present(args.bias)) return false;
  if (of_tokens(args.k_scale) || of_tokens(args.k_offset) || of_tokens(args.v_scale) || of_tokens(args.v_offset)) {
    return false;
  }
  for (int axis = 0; axis < 4; ++axis) {
    if (args.k.shape[axis] > 1 && args.k.strides[axis] != args.v.strides[axis]) return false;
  }
  return limit(args.before) == kEverywhere && (limit(args.after) == kEverywhere || is_causal(args));
}

bool codes_attention_takes(const FusedArgs& args, const FusedSequence* sequences) {
  return std::all_of(sequences, sequences + batch_size(args), [&](const FusedSequence& sequence) {
    const int64_t least = is_causal(args) ? sequence.rows : 1;
    return sequence.rows == 0 || (sequence.columns >= least && sequence.columns <= INT32_MAX);
  });
}

int32_t attend_to_codes(const FusedArgs& args, const FusedSequence* sequences, uintptr_t memory) {
  return CodesRun(args, sequences, memory).run();
}

}  // namespace anynpu
