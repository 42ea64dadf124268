// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <initializer_list>

#include "core/strided.h"
#include "ops/grouped_matmul_combine/grouped_matmul_combine.h"
#include "ops/quant_matmul/int8_problem.h"

namespace anynpu {
namespace {

constexpr const char* kOp = "grouped_matmul_combine";

// An int32 y without scale and row_index takes the sums of each row.
bool wants_sums(const anynpu_grouped_matmul_combine_args& args) {
  return args.y.dtype == ANYNPU_INT32 && !present(args.scale) && !present(args.row_index);
}

int32_t check_tensors(const anynpu_grouped_matmul_combine_args& args) {
  const bool sums = wants_sums(args);
  const struct {
    const char* name;
    const anynpu_tensor& tensor;
    bool required;
  } tensors[] = {
      {"x", args.x, true},
      {"weight", args.weight, true},
      {"scale", args.scale, !sums},
      {"group_list", args.group_list, true},
      {"row_index", args.row_index, !sums},
      {"bias", args.bias, false},
      {"offset", args.offset, false},
      {"pertoken_scale", args.pertoken_scale, false},
      {"logit", args.logit, false},
      {"shared_input", args.shared_input, false},
      {"y", args.y, true},
  };
  for (const auto& each : tensors) {
    ANYNPU_TRY(each.required ? check_required(kOp, each.name, each.tensor) : check_tensor(kOp, each.name, each.tensor));
    if (!present(each.tensor) || &each.tensor == &args.weight) continue;
    if (each.tensor.format != ANYNPU_ND) {
      return fail(ANYNPU_BAD_SHAPE, "%s: format of %s must be ND (2), got %d", kOp, each.name, each.tensor.format);
    }
    const bool strided = &each.tensor == &args.x || &each.tensor == &args.shared_input;
    if (!strided && !is_contiguous(each.tensor)) {
      return fail(ANYNPU_BAD_SHAPE, "%s: %s must be contiguous", kOp, each.name);
    }
    if (sums && !each.required && present(each.tensor)) {
      return fail(ANYNPU_BAD_SHAPE, "%s: %s must be absent with int32 y", kOp, each.name);
    }
  }
  return ANYNPU_OK;
}

int32_t check_dtypes(const anynpu_grouped_matmul_combine_args& args) {
  ANYNPU_TRY(check_dtype(kOp, "x", args.x, {ANYNPU_INT8}));
  if (wants_sums(args)) {
    ANYNPU_TRY(check_dtype(kOp, "group_list", args.group_list, {ANYNPU_INT64}));
    return check_dtype(kOp, "weight of int32 y", args.weight, {ANYNPU_INT8});
  }
  ANYNPU_TRY(check_dtype(kOp, "weight", args.weight, {ANYNPU_INT8, ANYNPU_INT32, ANYNPU_INT4}));
  if (args.weight.dtype == ANYNPU_INT8) {
    ANYNPU_TRY(check_dtype(kOp, "scale of int8 weights", args.scale, {ANYNPU_FLOAT32, ANYNPU_BFLOAT16}));
    if (present(args.bias) || present(args.offset)) {
      return fail(ANYNPU_BAD_SHAPE, "%s: %s must be absent with int8 weights", kOp,
                  present(args.bias) ? "bias" : "offset");
    }
  } else {
    ANYNPU_TRY(check_dtype(kOp, "scale of int4 weights", args.scale, {ANYNPU_INT64, ANYNPU_UINT64}));
  }
  ANYNPU_TRY(check_dtype(kOp, "group_list", args.group_list, {ANYNPU_INT64}));
  ANYNPU_TRY(check_dtype(kOp, "row_index", args.row_index, {ANYNPU_INT64, ANYNPU_INT32, ANYNPU_FLOAT32}));
  ANYNPU_TRY(check_dtype(kOp, "bias", args.bias, {ANYNPU_FLOAT32}));
  ANYNPU_TRY(check_dtype(kOp, "offset", args.offset, {ANYNPU_FLOAT32}));
  ANYNPU_TRY(check_dtype(kOp, "pertoken_scale", args.pertoken_scale, {ANYNPU_FLOAT32}));
  ANYNPU_TRY(check_dtype(kOp, "logit", args.logit, {ANYNPU_FLOAT32}));
  ANYNPU_TRY(check_dtype(kOp, "shared_input", args.shared_input, {ANYNPU_BFLOAT16}));
  return check_dtype(kOp, "y", args.y, {ANYNPU_FLOAT32});
}

int32_t check_matrices(const anynpu_grouped_matmul_combine_args& args, CombineProblem* problem) {
  const anynpu_tensor &x = args.x, &weight = args.weight;
  if (x.ndim != 2) return fail(ANYNPU_BAD_SHAPE, "%s: x must have shape (M, K), got %s", kOp, shape_text(x));
  if (weight.ndim != 3) {
    return fail(ANYNPU_BAD_SHAPE, "%s: weight must have shape (E, K, N), or (E, K, N / 8) of packed int4, got %s", kOp,
                shape_text(weight));
  }
  ANYNPU_TRY(check_strides(kOp, "x", x, Access::read));
  if (weight.format == ANYNPU_ND) ANYNPU_TRY(check_strides(kOp, "weight", weight, Access::read));
  problem->m = x.shape[0];
  problem->k = x.shape[1];
  ANYNPU_TRY(view_weight(kOp, "weight", weight, problem->k, &problem->weight));
  problem->experts = weight.shape[0];
  problem->n = problem->weight.source.n;
  if (problem->weight.source.k != problem->k) {
    return fail(ANYNPU_BAD_SHAPE, "%s: K of x and weight must be equal, got %lld and %lld (x is %s, weight is %s)", kOp,
                wide(problem->k), wide(problem->weight.source.k), shape_text(x), shape_text(weight));
  }
  if (problem->k < 1 || problem->k > kMostInt8K) {
    return fail(ANYNPU_BAD_SHAPE, "%s: K must be in [1, %lld] so that int32 sums are exact, got %lld", kOp,
                wide(kMostInt8K), wide(problem->k));
  }
  return ANYNPU_OK;
}

int32_t check_shape(const char* name, const anynpu_tensor& tensor, std::initializer_list<int64_t> shape,
                    const char* rule) {
  if (!present(tensor)) return ANYNPU_OK;
  if (tensor.ndim == static_cast<int32_t>(shape.size()) && std::equal(shape.begin(), shape.end(), tensor.shape)) {
    return ANYNPU_OK;
  }
  anynpu_tensor expected = {};
  expected.ndim = static_cast<int32_t>(shape.size());
  std::copy(shape.begin(), shape.end(), expected.shape);
  return fail(ANYNPU_BAD_SHAPE, "%s: %s must have shape %s = %s, got %s", kOp, name, rule, shape_text(expected),
              shape_text(tensor));
}

int32_t check_scale(const anynpu_tensor& scale, CombineProblem* problem) {
  problem->scale_groups = 1;
  if (problem->sums_only()) return ANYNPU_OK;
  if (!problem->int4()) return check_shape("scale", scale, {problem->experts, problem->n}, "(E, N)");
  const bool fits = scale.ndim == 3 && scale.shape[0] == problem->experts && scale.shape[2] == problem->n;
  if (!fits || scale.shape[1] < 1 || problem->k % scale.shape[1] != 0) {
    return fail(ANYNPU_BAD_SHAPE,
                "%s: scale must have shape (E, G, N) = (%lld, G, %lld) with G a divisor of K = %lld, got %s", kOp,
                wide(problem->experts), wide(problem->n), wide(problem->k), shape_text(scale));
  }
  problem->scale_groups = scale.shape[1];
  return ANYNPU_OK;
}

int32_t check_shared_input(const anynpu_grouped_matmul_combine_args& args, const CombineProblem& problem) {
  const anynpu_tensor& shared = args.shared_input;
  if (!present(shared)) return ANYNPU_OK;
  if (shared.ndim != 2 || shared.shape[1] != problem.n) {
    return fail(ANYNPU_BAD_SHAPE, "%s: shared_input must have shape (S, N) = (S, %lld), got %s", kOp, wide(problem.n),
                shape_text(shared));
  }
  const int64_t first = args.shared_input_offset;
  if (first >= 0 && first <= problem.batch && shared.shape[0] <= problem.batch - first) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE,
              "%s: shared_input_offset must be in [0, %lld - %lld] so that the rows of shared_input lie in y, got %lld",
              kOp, wide(problem.batch), wide(shared.shape[0]), wide(first));
}

// False unless the value is a row of y.
bool row_at(const anynpu_tensor& index, int64_t r, int64_t batch, int64_t* row, double* value) {
  if (index.dtype == ANYNPU_FLOAT32) {
    *value = static_cast<const float*>(index.data)[r];
    if (!(*value >= 0 && *value < static_cast<double>(batch)) || *value != std::floor(*value)) return false;
    *row = static_cast<int64_t>(*value);
    return true;
  }
  *row = index.dtype == ANYNPU_INT64 ? static_cast<const int64_t*>(index.data)[r]
                                     : static_cast<const int32_t*>(index.data)[r];
  *value = static_cast<double>(*row);
  return *row >= 0 && *row < batch;
}

}  // namespace

int32_t check_grouped_matmul_combine(const anynpu_grouped_matmul_combine_args& args, CombineProblem* problem) {
  *problem = {};
  problem->args = &args;
  ANYNPU_TRY(check_tensors(args));
  ANYNPU_TRY(check_dtypes(args));
  ANYNPU_TRY(check_matrices(args, problem));
  ANYNPU_TRY(check_scale(args.scale, problem));
  ANYNPU_TRY(check_shape("group_list", args.group_list, {problem->experts}, "(E,)"));
  ANYNPU_TRY(check_shape("row_index", args.row_index, {problem->m}, "(M,)"));
  ANYNPU_TRY(check_shape("bias", args.bias, {problem->experts, problem->n}, "(E, N)"));
  ANYNPU_TRY(check_shape("offset", args.offset, {problem->experts, 1, problem->n}, "(E, 1, N)"));
  ANYNPU_TRY(check_shape("pertoken_scale", args.pertoken_scale, {problem->m}, "(M,)"));
  ANYNPU_TRY(check_shape("logit", args.logit, {problem->m}, "(M,)"));
  if (args.y.ndim != 2 || args.y.shape[1] != problem->n) {
    return fail(ANYNPU_BAD_SHAPE, "%s: y must have shape (B, N) = (B, %lld), got %s", kOp, wide(problem->n),
                shape_text(args.y));
  }
  problem->batch = args.y.shape[0];
  if (problem->sums_only() && problem->batch != problem->m) {
    return fail(ANYNPU_BAD_SHAPE, "%s: int32 y must have shape (M, N) = (%lld, %lld), got %s", kOp, wide(problem->m),
                wide(problem->n), shape_text(args.y));
  }
  ANYNPU_TRY(check_shared_input(args, *problem));
  if (args.group_list_type == 0 || args.group_list_type == 1) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE, "%s: group_list_type must be 0 (running sums) or 1 (counts), got %d", kOp,
              args.group_list_type);
}

int32_t read_groups(const CombineProblem& problem, int64_t* group_ends) {
  const auto* list = static_cast<const int64_t*>(problem.args->group_list.data);
  const bool counts = problem.args->group_list_type == 1;
  int64_t end = 0;
  for (int64_t e = 0; e < problem.experts; ++e) {
    const int64_t least = counts ? 0 : end, most = counts ? problem.m - end : problem.m;
    if (list[e] < least || list[e] > most) {
      return fail(ANYNPU_BAD_VALUE, "%s: group_list[%lld] must be in [%lld, %lld] (%s, x has %lld rows), got %lld", kOp,
                  wide(e), wide(least), wide(most), counts ? "counts" : "running sums", wide(problem.m), wide(list[e]));
    }
    group_ends[e] = end = counts ? end + list[e] : list[e];
  }
  return ANYNPU_OK;
}

int32_t read_row_index(const CombineProblem& problem, int64_t rows, int64_t* row_index) {
  for (int64_t r = 0; r < rows; ++r) {
    double value;
    if (row_at(problem.args->row_index, r, problem.batch, &row_index[r], &value)) continue;
    return fail(ANYNPU_BAD_VALUE, "%s: row_index[%lld] must be a row of y, in [0, %lld), got %.17g", kOp, wide(r),
                wide(problem.batch), value);
  }
  return ANYNPU_OK;
}

}  // namespace anynpu
