// SPDX-License-Identifier: Apache-2.0
#include "ops/fused_attention/fused_attention.h"

#include <algorithm>
#include <limits>

#include "core/integer.h"
#include "core/parallel.h"
#include "core/scratch.h"
#include "ops/fused_attention/codes_attention.h"
#include "ops/fused_attention/float_attention.h"
#include "ops/fused_attention/integer_attention.h"

namespace anynpu {
namespace {

constexpr const char* kOp = "fused_attention";
constexpr int64_t kGrain = 1 << 16;  // products a thread
using Args = FusedArgs;
using Sequence = FusedSequence;

int64_t sequence_bytes(const Args& args) { return round_up(batch_size(args) * sizeof(Sequence), kScratchAlignment); }

int threads_for(const Args& args) {
  const int64_t work = element_count(args.out) * std::min<int64_t>(capacity(args), kGrain);
  return work <= kGrain ? 1 : thread_count(std::numeric_limits<int32_t>::max(), 1);
}

size_t workspace_size(const Args& args) {
  if (element_count(args.out) == 0) return 0;
  if (has_integer_products(args)) return sequence_bytes(args) + integer_attention_bytes(args, threads_for(args));
  const int64_t floats = float_attention_bytes(args, threads_for(args));
  return sequence_bytes(args) + (codes_attention_takes(args) ? std::max(floats, codes_attention_bytes(args)) : floats);
}

int32_t run(const Args& args, void* workspace, size_t workspace_bytes) {
  const size_t bytes = workspace_size(args);
  if (bytes == 0) return ANYNPU_OK;
  void* memory = workspace != nullptr && workspace_bytes >= bytes ? workspace : scratch(ScratchSlot::fallback, bytes);
  if (memory == nullptr) return fail(ANYNPU_NO_MEMORY, "%s: no memory for %zu bytes of workspace", kOp, bytes);
  auto* sequences = static_cast<Sequence*>(memory);
  const uintptr_t rest = reinterpret_cast<uintptr_t>(memory) + sequence_bytes(args);
  for (int64_t batch = 0; batch < batch_size(args); ++batch) {
    ANYNPU_TRY(place_sequence(args, batch, &sequences[batch]));
  }
  if (has_integer_products(args)) {
    attend_in_integers(args, sequences, threads_for(args), rest);
    return ANYNPU_OK;
  }
  if (codes_attention_takes(args) && codes_attention_takes(args, sequences)) {
    return attend_to_codes(args, sequences, rest);
  }
  attend_in_float(args, sequences, threads_for(args), rest);
  return ANYNPU_OK;
}

}  // namespace
}  // namespace anynpu

extern "C" int32_t anynpu_fused_attention_check(const anynpu_fused_attention_args* args, size_t* workspace_bytes) {
  if (args == nullptr || workspace_bytes == nullptr) {
    return anynpu::fail(ANYNPU_NULL_ARG, "fused_attention: null argument");
  }
  *workspace_bytes = 0;
  const anynpu::FusedArgs made = anynpu::with_int4(*args);
  ANYNPU_TRY(anynpu::check_fused_attention(made));
  *workspace_bytes = anynpu::workspace_size(made);
  return ANYNPU_OK;
}

extern "C" int32_t anynpu_fused_attention(const anynpu_fused_attention_args* args, void* workspace,
                                          size_t workspace_bytes) {
  size_t wanted = 0;
  ANYNPU_TRY(anynpu_fused_attention_check(args, &wanted));
  ANYNPU_TRY(anynpu::check_fused_data(*args));
  return anynpu::run(anynpu::with_int4(*args), workspace, workspace_bytes);
}
