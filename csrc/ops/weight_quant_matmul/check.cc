// SPDX-License-Identifier: Apache-2.0
#include "ops/weight_quant_matmul/weight_quant_matmul.h"

namespace anynpu {
namespace {

constexpr const char* kOp = "weight_quant_matmul";

int32_t require_nd(const char* name, const anynpu_tensor& tensor) {
  if (!present(tensor) || tensor.format == ANYNPU_ND) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE, "%s: format of %s must be ND (2), got %d", kOp, name, tensor.format);
}

int32_t check_tensors(const anynpu_weight_quant_matmul_args& args) {
  const struct {
    const char* name;
    const anynpu_tensor& tensor;
    bool required;
  } tensors[] = {
      {"x", args.x, true},
      {"weight", args.weight, true},
      {"scale", args.scale, true},
      {"offset", args.offset, false},
      {"bias", args.bias, false},
      {"quant_scale", args.quant_scale, false},
      {"quant_offset", args.quant_offset, false},
      {"y", args.y, true},
  };
  for (const auto& each : tensors) {
    ANYNPU_TRY(each.required ? check_required(kOp, each.name, each.tensor) : check_tensor(kOp, each.name, each.tensor));
    if (&each.tensor != &args.weight) ANYNPU_TRY(require_nd(each.name, each.tensor));
  }
  return ANYNPU_OK;
}

int32_t check_dtypes(const anynpu_weight_quant_matmul_args& args) {
  const int32_t x = args.x.dtype, scale = args.scale.dtype;
  ANYNPU_TRY(check_dtype(kOp, "x", args.x, {ANYNPU_FLOAT16, ANYNPU_BFLOAT16, ANYNPU_FLOAT32}));
  const bool encoded_scale =
      scale == ANYNPU_INT64 && args.weight.dtype != ANYNPU_INT4 && args.weight.dtype != ANYNPU_INT32;
  if (scale != x && scale != ANYNPU_FLOAT32 && !encoded_scale) {
    return fail(ANYNPU_BAD_DTYPE,
                "%s: scale must be %s as x is, float32, or for int8 weights int64 of trans_quant_param, got %s with %s "
                "weights",
                kOp, dtype_name(x), dtype_name(scale), dtype_name(args.weight.dtype));
  }
  if (present(args.offset) && (scale == ANYNPU_INT64 || args.offset.dtype != scale)) {
    return fail(ANYNPU_BAD_DTYPE,
                scale == ANYNPU_INT64 ? "%s: offset must be absent when scale is encoded in int64, got %s"
                                      : "%s: offset must have the dtype of scale, got %s with scale %s",
                kOp, dtype_name(args.offset.dtype), dtype_name(scale));
  }
  ANYNPU_TRY(check_dtype(kOp, "bias", args.bias, {ANYNPU_FLOAT16, ANYNPU_BFLOAT16, ANYNPU_FLOAT32}));
  if (present(args.quant_scale) && args.quant_scale.dtype != ANYNPU_FLOAT32 && args.quant_scale.dtype != ANYNPU_INT64) {
    return fail(ANYNPU_BAD_DTYPE, "%s: quant_scale must be float32, or int64 of trans_quant_param, got %s", kOp,
                dtype_name(args.quant_scale.dtype));
  }
  ANYNPU_TRY(check_dtype(kOp, "quant_offset", args.quant_offset, {ANYNPU_FLOAT32}));
  const int32_t result = present(args.quant_scale) ? static_cast<int32_t>(ANYNPU_INT8) : x;
  if (args.y.dtype != result) {
    return fail(ANYNPU_BAD_DTYPE, "%s: y must be %s (x is %s, quant_scale is %s), got %s", kOp, dtype_name(result),
                dtype_name(x), present(args.quant_scale) ? "given" : "absent", dtype_name(args.y.dtype));
  }
  return ANYNPU_OK;
}

int32_t check_ranks(const anynpu_weight_quant_matmul_args& args) {
  const bool prepacked = args.weight.dtype == ANYNPU_UINT8;
  if (args.x.ndim < 2) {
    return fail(ANYNPU_BAD_SHAPE, "%s: x shape do not support dim num less than 2, but it is %d", kOp, args.x.ndim);
  }
  if (prepacked) {
    if (args.weight.ndim == 1 && args.weight.format == ANYNPU_ND && is_contiguous(args.weight)) return ANYNPU_OK;
    return fail(ANYNPU_BAD_SHAPE, "%s: a prepacked (uint8) weight must be contiguous with one axis, got shape %s", kOp,
                shape_text(args.weight));
  }
  if (args.weight.ndim < 2) {
    return fail(ANYNPU_BAD_SHAPE, "%s: weight shape do not support dim num less than 2, but it is %d", kOp,
                args.weight.ndim);
  }
  if (args.weight.ndim != 2 && args.weight.ndim != args.x.ndim) {
    return fail(ANYNPU_BAD_SHAPE, "%s: x dim is not the same as weight dim", kOp);
  }
  return ANYNPU_OK;
}

// An int32 weight with one int4 in each element would else be an error about the shape of something else.
int32_t check_packed(const anynpu_weight_quant_matmul_args& args) {
  const anynpu_tensor &weight = args.weight, &scale = args.scale;
  const int64_t k = args.x.shape[args.x.ndim - 1], group = args.group_size;
  const int64_t groups = group > 0 ? k / group + (k % group != 0) : 1;
  const bool fits = scale.ndim == 1 || (scale.ndim == 2 && scale.shape[0] == groups);
  if (weight.dtype != ANYNPU_INT32 || !fits) return ANYNPU_OK;
  const int64_t n = scale.shape[scale.ndim - 1];
  const int64_t* last = weight.shape + weight.ndim - 2;
  if (n < 2 || last[0] != k || last[1] != n) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE,
              "%s: an int32 weight must hold eight int4 in each element, as int4_pack makes it: shape (K, N / 8), or "
              "(K / 8, N) packed along K, for K = %lld and N = %lld, got %s",
              kOp, wide(k), wide(n), shape_text(weight));
}

int32_t check_prepacked_size(const anynpu_tensor& weight, int64_t k, int64_t n) {
  if (n <= kLargestAxis && k <= kLargestAxis && (n == 0 || k <= (int64_t{1} << 58) / n)) {
    const int64_t bytes4 = packed32_bytes(4, k, n), bytes8 = packed32_bytes(8, k, n);
    if (weight.shape[0] == bytes4 || weight.shape[0] == bytes8) return ANYNPU_OK;
    return fail(ANYNPU_BAD_SHAPE,
                "%s: prepacked weight for K %lld and N %lld must have %lld (w4p32) or %lld (w8p32) bytes, "
                "got %lld",
                kOp, wide(k), wide(n), wide(bytes4), wide(bytes8), wide(weight.shape[0]));
  }
  return fail(ANYNPU_BAD_SHAPE, "%s: K %lld and N %lld are too large", kOp, wide(k), wide(n));
}

int32_t check_matrices(const anynpu_weight_quant_matmul_args& args, WeightQuantProblem* problem) {
  const anynpu_tensor &x = args.x, &weight = args.weight, &y = args.y;
  problem->m = x.shape[x.ndim - 2];
  problem->k = x.shape[x.ndim - 1];
  if (weight.dtype == ANYNPU_UINT8) {
    problem->n = y.ndim > 0 ? y.shape[y.ndim - 1] : 0;
    ANYNPU_TRY(check_prepacked_size(weight, problem->k, problem->n));
    problem->weight = {};
    problem->weight.source.bits = weight.shape[0] == packed32_bytes(4, problem->k, problem->n) ? 4 : 8;
  } else {
    ANYNPU_TRY(view_weight(kOp, "weight", weight, problem->k, &problem->weight));
    problem->n = problem->weight.source.n;
    if (problem->weight.source.k != problem->k) {
      return fail(ANYNPU_BAD_SHAPE,
                  "%s: The k of x and weight should be equal. but x_k_dim is %lld, weight_k_dim is %lld", kOp,
                  wide(problem->k), wide(problem->weight.source.k));
    }
  }
  const bool batched = weight.ndim > 2;
  int64_t batches = 1;
  for (int axis = 0; axis < x.ndim - 2; ++axis) {
    batches *= x.shape[axis];
    if (batched && weight.shape[axis] != x.shape[axis]) {
      return fail(ANYNPU_BAD_SHAPE, "%s: batch of x is diff from batch of weight", kOp);
    }
  }
  problem->weight_count = batched ? batches : 1;
  problem->rows = batched ? problem->m : problem->m * batches;
  anynpu_tensor expected = x;
  expected.shape[x.ndim - 1] = problem->n;
  return check_shape(kOp, "y", y, expected);
}

int32_t check_attributes(const anynpu_weight_quant_matmul_args& args, const WeightQuantProblem& problem) {
  const int64_t group = args.group_size;
  if (group != 0 && (group < 32 || group % 32 != 0 || group > problem.k - 1)) {
    return fail(
        ANYNPU_BAD_SHAPE,
        "%s: antiquant_group_size can be either 0 or a multiple of 32 within the range 32 to weight_k_dim - 1. Got "
        "%lld (weight_k_dim is %lld)",
        kOp, wide(group), wide(problem.k));
  }
  if (present(args.quant_offset) && !present(args.quant_scale)) {
    return fail(
        ANYNPU_BAD_SHAPE,
        "%s: Quantization parameters are incorrectly set, quant_offset cannot exist in isolation from quant_scale",
        kOp);
  }
  if (present(args.quant_offset) && args.quant_scale.dtype == ANYNPU_INT64) {
    return fail(ANYNPU_BAD_SHAPE,
                "%s: quant_offset must be absent when quant_scale is encoded in int64, whose bits 37 to 45 "
                "hold it",
                kOp);
  }
  if (args.inner_precise != 0 && args.inner_precise != 1) {
    return fail(ANYNPU_BAD_SHAPE, "%s: inner_precise only support 0 or 1. but is:%d", kOp, args.inner_precise);
  }
  return ANYNPU_OK;
}

// (1), (N) or (1, N); (1) only where `single` says so.
int32_t view_row(const char* name, const anynpu_tensor& tensor, int64_t n, bool single, Channels* channels) {
  *channels = {tensor.data, tensor.dtype, 0, 0};
  if (!present(tensor)) return ANYNPU_OK;
  const int last = tensor.ndim - 1;
  const bool row = tensor.ndim == 1 || (tensor.ndim == 2 && tensor.shape[0] == 1);
  if (row && single && tensor.shape[last] == 1) return ANYNPU_OK;
  if (row && tensor.shape[last] == n) {
    channels->column_stride = tensor.strides[last];
    return ANYNPU_OK;
  }
  return fail(ANYNPU_BAD_SHAPE, "%s: %s must have shape %s(%lld,) or (1, %lld) as N is %lld, got %s", kOp, name,
              single ? "(1,), " : "", wide(n), wide(n), wide(n), shape_text(tensor));
}

// With groups (ceil(K / group_size), N).
int32_t view_groups(const char* name, const anynpu_tensor& tensor, const WeightQuantProblem& problem,
                    Channels* channels) {
  if (problem.args->group_size == 0 || !present(tensor)) return view_row(name, tensor, problem.n, true, channels);
  *channels = {tensor.data, tensor.dtype, tensor.strides[0], tensor.strides[1]};
  const int64_t groups = (problem.k + problem.group - 1) / problem.group;
  if (tensor.ndim == 2 && tensor.shape[0] == groups && tensor.shape[1] == problem.n) return ANYNPU_OK;
  if (tensor.ndim == 2 && tensor.shape[1] == problem.n) {
    return fail(
        ANYNPU_BAD_SHAPE,
        "%s: %s.shape[0] must be ceil(K / group_size) = ceil(%lld / %lld) = %lld, got %lld (x is %s, group_size %lld)",
        kOp, name, wide(problem.k), wide(problem.group), wide(groups), wide(tensor.shape[0]),
        shape_text(problem.args->x), wide(problem.group));
  }
  return fail(ANYNPU_BAD_SHAPE,
              "%s: %s must have shape (ceil(K / group_size), N) = (ceil(%lld / %lld), N) = (%lld, %lld), "
              "got %s",
              kOp, name, wide(problem.k), wide(problem.group), wide(groups), wide(problem.n), shape_text(tensor));
}

}  // namespace

int32_t check_weight_quant_matmul(const anynpu_weight_quant_matmul_args& args, WeightQuantProblem* problem) {
  *problem = {};
  problem->args = &args;
  ANYNPU_TRY(check_tensors(args));
  ANYNPU_TRY(check_ranks(args));
  ANYNPU_TRY(check_packed(args));
  ANYNPU_TRY(check_matrices(args, problem));
  ANYNPU_TRY(check_attributes(args, *problem));
  ANYNPU_TRY(check_dtypes(args));
  if (problem->m > kLargestAxis) {
    return fail(ANYNPU_BAD_SHAPE, "%s: M must be at most 2^40, got %lld", kOp, wide(problem->m));
  }
  problem->group = args.group_size != 0 ? args.group_size : problem->k > 0 ? problem->k : 1;
  problem->has_offset = present(args.offset);
  problem->has_bias = present(args.bias);
  problem->has_quant = present(args.quant_scale);
  ANYNPU_TRY(view_groups("scale", args.scale, *problem, &problem->scale));
  ANYNPU_TRY(view_groups("offset", args.offset, *problem, &problem->offset));
  ANYNPU_TRY(view_row("bias", args.bias, problem->n, false, &problem->bias));
  ANYNPU_TRY(view_row("quant_scale", args.quant_scale, problem->n, true, &problem->quant_scale));
  return view_row("quant_offset", args.quant_offset, problem->n, true, &problem->quant_offset);
}

}  // namespace anynpu
