// SPDX-License-Identifier: Apache-2.0
#include "ops/grouped_matmul/aclnn_plan.h"

#include "core/status.h"
#include "core/tensor.h"

namespace anynpu::grouped {
namespace {

bool is_half(int32_t dtype) { return dtype == ANYNPU_FLOAT16 || dtype == ANYNPU_BFLOAT16; }
bool is_word(int32_t dtype) { return dtype == ANYNPU_INT64 || dtype == ANYNPU_UINT64; }

int32_t check_dtypes(const char* name, const anynpu_tensor* tensors, size_t count) {
  for (size_t i = 1; i < count; ++i) {
    if (tensors[i].dtype == tensors[0].dtype) continue;
    return fail(ANYNPU_BAD_DTYPE, "all tensors of %s must have one dtype, got %s and %s", name,
                dtype_name(tensors[0].dtype), dtype_name(tensors[i].dtype));
  }
  return ANYNPU_OK;
}

int32_t check_dtype(const char* name, int32_t dtype, bool holds, const char* expected) {
  if (holds) return ANYNPU_OK;
  return fail(ANYNPU_BAD_DTYPE, "%s must be %s, got %s", name, expected, dtype_name(dtype));
}

int32_t check_absent(const char* name, size_t count, const char* why) {
  if (count == 0) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE, "%s must be null or empty with %s", name, why);
}

int32_t find_float_mode(const Args& args, Mode* mode) {
  const int32_t x = args.x[0].dtype, weight = args.weight[0].dtype, y = args.y[0].dtype;
  ANYNPU_TRY(check_absent("scaleOptional", args.scale_count, "float x"));
  ANYNPU_TRY(check_absent("perTokenScaleOptional", args.pertoken_scale_count, "float x"));
  *mode = args.antiquant_scale_count > 0 ? Mode::antiquant : Mode::floats;
  if (y != x) return check_dtype("out", y, false, dtype_name(x));
  if (*mode == Mode::floats) {
    ANYNPU_TRY(check_absent("antiquantOffsetOptional", args.antiquant_offset_count, "no antiquantScaleOptional"));
    return check_dtype("weight of float x without antiquantScaleOptional", weight, weight == x, dtype_name(x));
  }
  ANYNPU_TRY(check_dtype("x with antiquantScaleOptional", x, is_half(x), "float16 or bfloat16"));
  return check_dtype("weight with antiquantScaleOptional", weight,
                     weight == ANYNPU_INT8 || weight == ANYNPU_INT4 || weight == ANYNPU_INT32,
                     "int8, int4 or int32 (eight int4)");
}

int32_t find_int8_mode(const Args& args, Mode* mode) {
  const int32_t weight = args.weight[0].dtype, y = args.y[0].dtype;
  ANYNPU_TRY(check_absent("antiquantScaleOptional", args.antiquant_scale_count, "int8 x"));
  ANYNPU_TRY(check_absent("antiquantOffsetOptional", args.antiquant_offset_count, "int8 x"));
  *mode = weight == ANYNPU_INT8 ? Mode::int8 : Mode::int4;
  ANYNPU_TRY(check_dtype("weight of int8 x", weight,
                         weight == ANYNPU_INT8 || weight == ANYNPU_INT4 || weight == ANYNPU_INT32,
                         "int8, int4 or int32 (eight int4)"));
  if (args.scale_count == 0) {
    ANYNPU_TRY(check_dtype("weight without scaleOptional", weight, weight == ANYNPU_INT8, "int8"));
    ANYNPU_TRY(check_absent("perTokenScaleOptional", args.pertoken_scale_count, "no scaleOptional"));
    return check_dtype("out without scaleOptional", y, y == ANYNPU_INT32, "int32");
  }
  const int32_t scale = args.scale[0].dtype;
  if (*mode == Mode::int4) {
    ANYNPU_TRY(check_dtype("scaleOptional of int4 weights", scale, is_word(scale), "int64 or uint64"));
    return check_dtype("out of int4 weights", y, is_half(y), "float16 or bfloat16");
  }
  if (is_word(scale)) {
    ANYNPU_TRY(check_absent("perTokenScaleOptional", args.pertoken_scale_count, "an int64 scaleOptional"));
    return check_dtype("out with an int64 scaleOptional", y, y == ANYNPU_INT8, "int8");
  }
  ANYNPU_TRY(check_dtype("scaleOptional of int8 weights", scale, scale == ANYNPU_FLOAT32 || scale == ANYNPU_BFLOAT16,
                         "float32, bfloat16, int64 or uint64"));
  return check_dtype("out with a float scaleOptional", y, is_half(y), "float16 or bfloat16");
}

int32_t find_mode(const Args& args, Mode* mode) {
  const int32_t x = args.x[0].dtype;
  if (x == ANYNPU_INT8) return find_int8_mode(args, mode);
  if (is_half(x) || x == ANYNPU_FLOAT32) return find_float_mode(args, mode);
  return fail(ANYNPU_BAD_DTYPE, "x must be int8, float16, bfloat16 or float32, others are not implemented, got %s",
              dtype_name(x));
}

int32_t check_axes(const char* name, const anynpu_tensor& tensor, int least, int most) {
  if (tensor.ndim >= least && tensor.ndim <= most) return ANYNPU_OK;
  if (least == most) return fail(ANYNPU_BAD_SHAPE, "%s must have %d axes, got %s", name, least, shape_text(tensor));
  return fail(ANYNPU_BAD_SHAPE, "%s must have %d to %d axes, got %s", name, least, most, shape_text(tensor));
}

// The tensors of a list: as many as `count`, or none.
int32_t check_count(const char* name, size_t own, const char* of, size_t count) {
  if (own == 0 || own == count) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE, "%s must have one tensor for each of %s, %zu, got %zu", name, of, count, own);
}

int32_t check_lists(const Args& args) {
  const struct {
    const char* name;
    const anynpu_tensor* tensors;
    size_t count;
    bool of_x;
  } lists[] = {
      {"x", args.x, args.x_count, true},
      {"weight", args.weight, args.weight_count, false},
      {"biasOptional", args.bias, args.bias_count, false},
      {"scaleOptional", args.scale, args.scale_count, false},
      {"antiquantScaleOptional", args.antiquant_scale, args.antiquant_scale_count, false},
      {"antiquantOffsetOptional", args.antiquant_offset, args.antiquant_offset_count, false},
      {"perTokenScaleOptional", args.pertoken_scale, args.pertoken_scale_count, true},
  };
  for (const auto& list : lists) {
    ANYNPU_TRY(check_dtypes(list.name, list.tensors, list.count));
    ANYNPU_TRY(
        check_count(list.name, list.count, list.of_x ? "x" : "weight", list.of_x ? args.x_count : args.weight_count));
    if (list.tensors == args.weight) continue;
    for (size_t i = 0; i < list.count; ++i) {
      ANYNPU_TRY(check_axes(list.name, list.tensors[i], 1, list.tensors == args.x ? 6 : 3));
      if (list.tensors[i].format == ANYNPU_ND) continue;
      return fail(ANYNPU_BAD_SHAPE, "%s must be ND, got format %d", list.name, list.tensors[i].format);
    }
  }
  return check_dtypes("out", args.y, args.y_count);
}

int32_t check_group_list(const Args& args, const Plan& plan) {
  if (!present(args.group_list)) {
    if (args.host_count < 0 || args.host_count == plan.groups) return ANYNPU_OK;
    return fail(ANYNPU_BAD_SHAPE, "groupListOptional must have one entry a group, %lld, got %lld", wide(plan.groups),
                wide(args.host_count));
  }
  const anynpu_tensor& list = args.group_list;
  ANYNPU_TRY(check_dtype("groupListOptional", list.dtype, list.dtype == ANYNPU_INT64, "int64"));
  const bool pairs = args.group_list_type == kPairs;
  const bool fits = pairs ? list.ndim == 2 && list.shape[1] == 2 : list.ndim == 1 && list.shape[0] == plan.groups;
  if (fits && list.format == ANYNPU_ND) return ANYNPU_OK;
  if (pairs) {
    return fail(ANYNPU_BAD_SHAPE, "groupListOptional must have shape (E, 2) of (group, size), got %s",
                shape_text(list));
  }
  return fail(ANYNPU_BAD_SHAPE, "groupListOptional must have shape (E,) = (%lld,), one entry a group, got %s",
              wide(plan.groups), shape_text(list));
}

// Which tensors multiply which, see docs/ops/grouped_matmul.md.
int32_t check_grouping(const Args& args, Plan* plan) {
  plan->stacked = args.group_type == kRows && args.weight_count == 1 && args.weight[0].ndim == 3;
  plan->paired = args.group_type == kNone || args.x_count > 1;
  plan->groups = static_cast<int64_t>(args.weight_count);
  if (plan->stacked) plan->groups = args.weight[0].shape[0];
  if (args.group_type == kColumns && args.weight_count == 1) {
    plan->groups = present(args.group_list) && args.group_list.ndim > 0 ? args.group_list.shape[0] : args.host_count;
  }
  if (args.group_type == kNone && (!args.split_result || has_list(args))) {
    return fail(ANYNPU_BAD_SHAPE, "groupType -1 (no groups) wants splitItem 0 or 1, and groupListOptional null");
  }
  if (!plan->paired && !has_list(args)) {
    return fail(ANYNPU_BAD_SHAPE, "groupListOptional must be given with one x and groupType %d", args.group_type);
  }
  if (args.x_count > 1 && (args.group_type == kColumns || (args.group_type == kRows && args.split_result))) {
    return fail(ANYNPU_BAD_SHAPE, "x must hold one tensor with groupType %d and splitItem %s, got %zu", args.group_type,
                args.split_result ? "0 or 1" : "2 or 3", args.x_count);
  }
  if (plan->paired && args.x_count != args.weight_count) {
    return fail(ANYNPU_BAD_SHAPE, "x and weight must hold equally many tensors, or x one and groups, got %zu and %zu",
                args.x_count, args.weight_count);
  }
  const int64_t results = args.split_result ? plan->groups : 1;
  if (static_cast<int64_t>(args.y_count) != results) {
    return fail(ANYNPU_BAD_SHAPE, "out must hold %lld tensors with splitItem %s, got %zu", wide(results),
                args.split_result ? "0 or 1" : "2 or 3", args.y_count);
  }
  return check_group_list(args, *plan);
}

int32_t check_ranks(const Args& args, const Plan& plan) {
  const int most = args.group_type == kNone ? 6 : 2, of_y = args.group_type == kColumns && !args.split_result ? 3 : 2;
  for (size_t i = 0; i < args.x_count; ++i) ANYNPU_TRY(check_axes("x", args.x[i], 2, most));
  for (size_t i = 0; i < args.weight_count && !plan.stacked; ++i)
    ANYNPU_TRY(check_axes("weight", args.weight[i], 2, 2));
  for (size_t i = 0; i < args.y_count; ++i) ANYNPU_TRY(check_axes("out", args.y[i], of_y, most > of_y ? most : of_y));
  return ANYNPU_OK;
}

// The parameters of a stacked weight are stacked like it; a scale (1) is for all of them.
int32_t check_stacked(const Args& args, const Plan& plan) {
  if (!plan.stacked) return ANYNPU_OK;
  const anynpu_tensor& weight = args.weight[0];
  if (weight.dtype == ANYNPU_INT4 && weight.format == ANYNPU_ND && plan.groups > 1 && weight.strides[0] % 2 != 0) {
    return fail(ANYNPU_BAD_SHAPE, "int4 weight must have whole bytes between its matrices, got a stride of %lld",
                wide(weight.strides[0]));
  }
  const struct {
    const char* name;
    const anynpu_tensor* tensors;
    size_t count;
    bool may_be_one;
  } lists[] = {
      {"biasOptional", args.bias, args.bias_count, false},
      {"scaleOptional", args.scale, args.scale_count, true},
      {"antiquantScaleOptional", args.antiquant_scale, args.antiquant_scale_count, false},
      {"antiquantOffsetOptional", args.antiquant_offset, args.antiquant_offset_count, false},
  };
  for (const auto& list : lists) {
    if (list.count == 0) continue;
    const anynpu_tensor& tensor = list.tensors[0];
    if (list.may_be_one && has_shape(tensor, {1})) continue;
    if (tensor.ndim >= 2 && tensor.shape[0] == plan.groups) continue;
    return fail(ANYNPU_BAD_SHAPE, "%s must have %lld along the first of 2 or 3 axes, as weight has, got %s", list.name,
                wide(plan.groups), shape_text(tensor));
  }
  return ANYNPU_OK;
}

// One result of rows, and the scales of rows.
int32_t check_rows(const Args& args) {
  for (size_t i = 0; i < args.pertoken_scale_count; ++i) {
    const anynpu_tensor &token = args.pertoken_scale[i], &x = args.x[i];
    if (x.ndim == 2 && (has_shape(token, {x.shape[0]}) || has_shape(token, {x.shape[0], 1}))) continue;
    return fail(ANYNPU_BAD_SHAPE, "perTokenScaleOptional must have shape (M,) or (M, 1) and x (M, K), got %s and %s",
                shape_text(token), shape_text(x));
  }
  if (args.split_result || args.group_type == kColumns) return ANYNPU_OK;
  int64_t rows = 0;
  for (size_t i = 0; i < args.x_count; ++i) {
    if (__builtin_add_overflow(rows, args.x[i].shape[0], &rows)) return fail(ANYNPU_BAD_SHAPE, "x has too many rows");
  }
  if (args.y[0].shape[0] == rows) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE, "out must have the %lld rows of x, got %s", wide(rows), shape_text(args.y[0]));
}

int32_t check_bias(const Args& args, Mode mode) {
  if (args.bias_count == 0) return ANYNPU_OK;
  const int32_t bias = args.bias[0].dtype, y = args.y[0].dtype;
  const bool is_float32 = bias == ANYNPU_FLOAT32;
  if (mode == Mode::int4) return check_dtype("biasOptional of int4 weights", bias, is_float32, "float32");
  if (mode == Mode::int8) {
    if (!is_half(y)) return check_dtype("biasOptional of int8 x", bias, bias == ANYNPU_INT32, "int32");
    return check_dtype("biasOptional of int8 x", bias, is_float32 || bias == ANYNPU_INT32, "int32 or float32");
  }
  if (y == ANYNPU_FLOAT16) {
    return check_dtype("biasOptional of float16 x", bias, is_float32 || bias == y, "float16 or float32");
  }
  return check_dtype("biasOptional of bfloat16 or float32 x", bias, is_float32, "float32");
}

// int8 weights have a scale and an offset for each column, int4 weights for each group of k of it, too.
int32_t check_antiquant(const Args& args) {
  const struct {
    const char* name;
    const anynpu_tensor* tensors;
    size_t count;
  } lists[] = {
      {"antiquantScaleOptional", args.antiquant_scale, args.antiquant_scale_count},
      {"antiquantOffsetOptional", args.antiquant_offset, args.antiquant_offset_count},
  };
  for (const auto& list : lists) {
    for (size_t i = 0; i < list.count && args.weight[i].dtype == ANYNPU_INT8; ++i) {
      ANYNPU_TRY(check_axes(list.name, list.tensors[i], args.weight[i].ndim - 1, args.weight[i].ndim - 1));
    }
  }
  return ANYNPU_OK;
}

// No products but those of floats have groups of columns.
int32_t check_columns(const Args& args, const Plan& plan) {
  if (args.group_type != kColumns) return ANYNPU_OK;
  if (plan.mode != Mode::floats) {
    return fail(ANYNPU_UNSUPPORTED, "groupType 2 (groups along K) is implemented for float x and weight");
  }
  ANYNPU_TRY(check_absent("biasOptional", args.bias_count, "groupType 2"));
  if (args.weight_count == 1 && args.weight[0].format != ANYNPU_ND) {
    return fail(ANYNPU_UNSUPPORTED, "one weight must be ND with groupType 2, got format %d", args.weight[0].format);
  }
  if (args.group_list_type == kPairs) return fail(ANYNPU_UNSUPPORTED, "groupListType 2 wants groupType 0");
  const int64_t k = args.x[0].shape[1];
  if (args.weight_count == 1 && args.weight[0].shape[0] != k) {
    return fail(ANYNPU_BAD_SHAPE, "K of x and weight must be equal, got %lld and %lld", wide(k),
                wide(args.weight[0].shape[0]));
  }
  if (!args.split_result && args.y[0].shape[0] != plan.groups) {
    return fail(ANYNPU_BAD_SHAPE, "out must have %lld matrices, one a group, got %s", wide(plan.groups),
                shape_text(args.y[0]));
  }
  return ANYNPU_OK;
}

}  // namespace

int32_t make_plan(const Args& args, Plan* plan) {
  ANYNPU_TRY(check_lists(args));
  ANYNPU_TRY(check_grouping(args, plan));
  ANYNPU_TRY(find_mode(args, &plan->mode));
  ANYNPU_TRY(check_bias(args, plan->mode));
  ANYNPU_TRY(check_ranks(args, *plan));
  ANYNPU_TRY(check_stacked(args, *plan));
  ANYNPU_TRY(check_antiquant(args));
  ANYNPU_TRY(check_columns(args, *plan));
  return check_rows(args);
}

}  // namespace anynpu::grouped
