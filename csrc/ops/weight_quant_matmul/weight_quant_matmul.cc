// SPDX-License-Identifier: Apache-2.0
// The driver of weight_quant_matmul. Rows of x are packed first, few ones by each thread for itself, then each task owns
// a block of columns (and, when columns are few, a part of the rows): it unpacks the weights of one span of k after the
// other into its scratch and multiplies. The order of additions into an element of y depends on K and the group size
// alone, so results do not depend on threads.
//
// No integer overflows: a digit of x lies in [-128, 127], a panel byte in [0, 255] and a block has at most kSpan = 256
// k, so an accumulator stays within 256 * 255 * 128 + its compensation 256 * 128 * 128 < 2^24.
#include "ops/weight_quant_matmul/weight_quant_matmul.h"

#include <algorithm>

#include "core/scratch.h"
#include "ops/weight_quant_matmul/channels.h"
#include "ops/weight_quant_matmul/k_blocks.h"
#include "ops/weight_quant_matmul/product.h"

namespace anynpu {
namespace {

constexpr const char* kOp = "weight_quant_matmul";

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
  ANYNPU_TRY(
      view_packed32(kOp, "weight", static_cast<const uint8_t*>(args.weight.data), args.weight.shape[0], &source));
  if (source.k != problem->k || source.n != problem->n) {
    return fail(ANYNPU_BAD_SHAPE, "%s: prepacked weight is (%lld, %lld), but x has K %lld and y has N %lld", kOp,
                wide(source.k), wide(source.n), wide(problem->k), wide(problem->n));
  }
  if (source.bits == 4 && args.scale.dtype == ANYNPU_INT64) {
    return fail(ANYNPU_BAD_DTYPE, "%s: int64 scale needs int8 weights, got a prepacked int4 weight", kOp);
  }
  return ANYNPU_OK;
}

// In `base`, a storage of this share.
void run_share(const WeightQuantProblem& problem, const WeightQuantPlan& plan, const GemmKernel& kernel, int64_t share,
               uint8_t* base, int32_t* fallback) {
  const WeightQuantStorage storage = lay_out(problem, plan, base);
  fill_blocks(problem.k, problem.group, storage.blocks);
  if (problem.has_bias) load_channels(kernel, problem.bias, 0, 0, problem.n, storage.bias);
  if (problem.has_quant) load_quantisation(problem, storage.quant_scale, storage.quant_offset);
  for (int64_t index = 0; index < problem.weight_count; ++index) {
    WeightSource weight = problem.weight.source;
    weight.data += problem.weight_count > 1 ? weight_offset(problem, index) : 0;
    const WeightQuantProduct product(problem, plan, storage, kernel, weight, share);
    for (int64_t row = 0; row < problem.rows; row += plan.chunk_rows) {
      product.run(index * problem.rows + row, std::min(plan.chunk_rows, problem.rows - row), fallback);
    }
  }
}

}  // namespace

int32_t run_weight_quant_matmul(const char* op, const WeightQuantProblem& problem, void* workspace,
                                size_t workspace_bytes) {
  const GemmKernel& kernel = gemm_kernel();
  const WeightQuantPlan plan = make_plan(problem, kernel);
  const int64_t share_bytes = lay_out(problem, plan, nullptr).bytes;
  const size_t needed = static_cast<size_t>(plan.shares * share_bytes);
  uint8_t* base = static_cast<uint8_t*>(workspace);
  if (base != nullptr) {
    const size_t skip = -reinterpret_cast<uintptr_t>(base) % kScratchAlignment;
    base = skip + needed <= workspace_bytes ? base + skip : nullptr;
  }
  if (base == nullptr) base = static_cast<uint8_t*>(scratch(ScratchSlot::main, needed));
  const bool may_fall_back = plan.scheme != Scheme::f32 && !problem.has_int8_rows();
  const int64_t fallback_values = may_fall_back ? plan.chunk_rows * problem.k : 0;
  const size_t fallback_bytes = static_cast<size_t>(plan.shares * fallback_values) * sizeof(float);
  int32_t* fallback = static_cast<int32_t*>(scratch(ScratchSlot::fallback, std::max<size_t>(1, fallback_bytes)));
  if (base == nullptr || fallback == nullptr) {
    return fail(ANYNPU_NO_MEMORY, "%s: no memory for %zu bytes of scratch", op, needed);
  }
  parallel_for(plan.shares, 1, [&](int64_t begin, int64_t end) {
    for (int64_t share = begin; share < end; ++share) {
      run_share(problem, plan, kernel, share, base + share * share_bytes, fallback + share * fallback_values);
    }
  });
  return ANYNPU_OK;
}

}  // namespace anynpu

using anynpu::fail;

extern "C" int32_t anynpu_weight_quant_matmul_check(const anynpu_weight_quant_matmul_args* args,
                                                    size_t* workspace_bytes) {
  if (args == nullptr || workspace_bytes == nullptr) return fail(ANYNPU_NULL_ARG, "weight_quant_matmul: null argument");
  *workspace_bytes = 0;
  anynpu::WeightQuantProblem problem;
  ANYNPU_TRY(anynpu::check_weight_quant_matmul(*args, &problem));
  if (anynpu::element_count(args->y) == 0) return ANYNPU_OK;
  const anynpu::WeightQuantPlan plan = anynpu::make_plan(problem, anynpu::gemm_kernel());
  *workspace_bytes =
      static_cast<size_t>(plan.shares * anynpu::lay_out(problem, plan, nullptr).bytes) + anynpu::kScratchAlignment;
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
  return anynpu::run_weight_quant_matmul("weight_quant_matmul", problem, workspace, workspace_bytes);
}
