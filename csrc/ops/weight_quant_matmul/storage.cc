// SPDX-License-Identifier: Apache-2.0
#include "ops/weight_quant_matmul/storage.h"

#include "core/carver.h"
#include "core/integer.h"

namespace anynpu {

WeightQuantStorage lay_out(const WeightQuantProblem& problem, const WeightQuantPlan& plan, void* base) {
  Carver carver(reinterpret_cast<uintptr_t>(base));
  WeightQuantStorage storage = {};
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
  for (int64_t thread = 0; thread < plan.threads; ++thread) {
    ThreadScratch scratch = {};
    scratch.row = carver.take<float>(round_up(problem.k, 64) + 64);
    scratch.panels = carver.take<uint8_t>(plan.column_block * span);
    if (plan.scheme == Scheme::bf16) scratch.operand = carver.take<int32_t>(kPanelColumns * span);
    if (plan.direct) scratch.sums = carver.take<int32_t>(plan.column_block * plan.chunk_rows * plan.digits);
    scratch.scale = carver.take<float>(plan.column_block * scale_blocks);
    scratch.offset = carver.take<float>(plan.column_block * scale_blocks);
    scratch.c = carver.take<float>(plan.column_block * part_rows(plan, plan.chunk_rows));
    if (base != nullptr) storage.threads[thread] = scratch;
  }
  storage.bytes = carver.used();
  return storage;
}

}  // namespace anynpu
