// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <initializer_list>

#include "core/strided.h"
#include "ops/fused_attention/fused_attention.h"

namespace anynpu {
namespace {

constexpr const char* kOp = "fused_attention";
constexpr int64_t kMost = 1 << 16;  // heads, and values of one
using Args = FusedArgs;

int32_t check_view(const char* name, const anynpu_tensor& tensor, std::initializer_list<int32_t> dtypes, int ndim,
                   Access access = Access::read) {
  ANYNPU_TRY(check_view(kOp, name, tensor, dtypes, access));
  if (tensor.ndim == ndim) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE, "%s: %s must have %d axes, got shape %s", kOp, name, ndim, shape_text(tensor));
}

// A view whose last axis holds the values of one head.
int32_t check_heads(const char* name, const anynpu_tensor& tensor, std::initializer_list<int32_t> dtypes,
                    Access access = Access::read) {
  ANYNPU_TRY(check_view(name, tensor, dtypes, 4, access));
  if (tensor.shape[2] < 1 || tensor.shape[3] < 1) {
    return fail(ANYNPU_BAD_SHAPE, "%s: %s must have heads with values, got shape %s", kOp, name, shape_text(tensor));
  }
  if (tensor.shape[2] > kMost || tensor.shape[3] > kMost) {
    return fail(ANYNPU_BAD_SHAPE, "%s: %s must have at most %lld heads of at most as many values, got shape %s", kOp,
                name, wide(kMost), shape_text(tensor));
  }
  if (tensor.shape[3] == 1 || tensor.strides[3] == 1) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE, "%s: the last axis of %s should be contiguous", kOp, name);
}

// `tensor` has the axes of `like` from `first` up to `last`.
int32_t check_same(const char* name, const anynpu_tensor& tensor, const char* like_name, const anynpu_tensor& like,
                   int first, int last) {
  if (std::equal(tensor.shape + first, tensor.shape + last, like.shape + first)) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE, "%s: %s must have axes %d to %d of %s, %s, got shape %s", kOp, name, first, last - 1,
              like_name, shape_text(like), shape_text(tensor));
}

// Words as the eight values that they hold; what overflows is refused as too large, or belongs to an axis of one element.
anynpu_tensor as_int4(anynpu_tensor tensor) {
  if (tensor.dtype != ANYNPU_INT32) return tensor;
  tensor.dtype = ANYNPU_INT4;
  const auto times_8 = [](int64_t value) { return value > INT64_MAX / 8 || value < INT64_MIN / 8 ? 0 : value * 8; };
  tensor.shape[3] = tensor.shape[3] > kMost ? kMost + 1 : times_8(tensor.shape[3]);
  for (int axis = 0; axis < 3; ++axis) tensor.strides[axis] = times_8(tensor.strides[axis]);
  return tensor;
}

// Heads of int4 begin at whole bytes.
int32_t check_bytes(const char* name, const anynpu_tensor& tensor) {
  if (tensor.dtype != ANYNPU_INT4) return ANYNPU_OK;
  for (int axis = 0; axis < 3; ++axis) {
    if (tensor.shape[axis] <= 1 || tensor.strides[axis] % 2 == 0) continue;
    return fail(ANYNPU_BAD_SHAPE, "%s: heads of int4 %s must begin at whole bytes, got shape %s", kOp, name,
                shape_text(tensor));
  }
  return ANYNPU_OK;
}

int32_t check_q_k_v(const Args& args) {
  const anynpu_tensor &q = args.q, &k = args.k, &v = args.v;
  ANYNPU_TRY(check_heads("q", q, {ANYNPU_FLOAT16, ANYNPU_BFLOAT16, ANYNPU_FLOAT32, ANYNPU_INT8}));
  if (has_integer_products(args)) {
    ANYNPU_TRY(check_heads("k", k, {ANYNPU_INT8}));
  } else {
    ANYNPU_TRY(check_heads("k", k, {q.dtype, ANYNPU_INT8, ANYNPU_INT4}));
  }
  ANYNPU_TRY(check_heads("v", v, {k.dtype}));
  ANYNPU_TRY(check_same("v", v, "k", k, 0, 3));
  ANYNPU_TRY(check_bytes("k", k));
  ANYNPU_TRY(check_bytes("v", v));
  if (k.shape[3] != q.shape[3]) {
    return fail(ANYNPU_BAD_SHAPE, "%s: the heads of k must be as long as those of q, %lld, got %lld", kOp,
                wide(q.shape[3]), wide(k.shape[3]));
  }
  if (q.shape[2] % k.shape[2] == 0) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE, "%s: the heads of q must be a multiple of those of k, got %lld and %lld", kOp,
              wide(q.shape[2]), wide(k.shape[2]));
}

int32_t check_rope(const Args& args) {
  if (present(args.q_rope) != present(args.k_rope)) {
    return fail(ANYNPU_BAD_SHAPE, "%s: q_rope and k_rope must be given together", kOp);
  }
  if (!present(args.q_rope)) return ANYNPU_OK;
  if (has_codes(args)) return fail(ANYNPU_UNSUPPORTED, "%s: q_rope is not implemented with int8 or int4 k and v", kOp);
  ANYNPU_TRY(check_heads("q_rope", args.q_rope, {args.q.dtype}));
  ANYNPU_TRY(check_heads("k_rope", args.k_rope, {args.q.dtype}));
  ANYNPU_TRY(check_same("q_rope", args.q_rope, "q", args.q, 0, 3));
  ANYNPU_TRY(check_same("k_rope", args.k_rope, "k", args.k, 0, 3));
  return check_same("k_rope", args.k_rope, "q_rope", args.q_rope, 3, 4);
}

int32_t check_factors(const char* name, const anynpu_tensor& factors, const anynpu_tensor& codes) {
  ANYNPU_TRY(check_view(name, factors, {ANYNPU_FLOAT32, ANYNPU_FLOAT16, ANYNPU_BFLOAT16}, 4));
  bool fits = true;
  for (int axis = 0; axis < 4; ++axis) {
    const int64_t size = factors.shape[axis], whole = codes.shape[axis];
    fits = fits && (size == 1 || (axis < 2 ? size >= whole : size == whole));
  }
  if (fits && (!of_tokens(factors) || factors.shape[3] == 1)) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE, "%s: %s must have a value for each head and channel, or for each token, of %s, got %s",
              kOp, name, shape_text(codes), shape_text(factors));
}

int32_t check_antiquant(const Args& args) {
  const struct {
    const char* name;
    const anynpu_tensor *factors, *codes;
    bool required;
  } entries[] = {{"k_scale", &args.k_scale, &args.k, true},
                 {"v_scale", &args.v_scale, &args.v, true},
                 {"k_offset", &args.k_offset, &args.k, false},
                 {"v_offset", &args.v_offset, &args.v, false}};
  for (const auto& entry : entries) {
    if (!has_codes(args)) {
      if (!present(*entry.factors)) continue;
      return fail(ANYNPU_BAD_DTYPE, "%s: %s is for int8 or int4 k and v, got %s", kOp, entry.name,
                  dtype_name(args.k.dtype));
    }
    if (!entry.required && !present(*entry.factors)) continue;
    ANYNPU_TRY(check_factors(entry.name, *entry.factors, *entry.codes));
  }
  return ANYNPU_OK;
}

int32_t check_lengths(const Args& args) {
  const bool packed = is_packed(args);
  for (const auto* lengths : {&args.q_lengths, &args.kv_lengths}) {
    const char* name = lengths == &args.q_lengths ? "q_lengths" : "kv_lengths";
    if (!packed && !present(*lengths)) continue;
    ANYNPU_TRY(check_view(name, *lengths, {ANYNPU_INT64}, 1));
    const int64_t batch = packed ? batch_size(args) : args.q.shape[0];
    if (lengths->shape[0] == batch && is_contiguous(*lengths)) continue;
    return fail(ANYNPU_BAD_SHAPE, "%s: %s must have one value for each of %lld sequences, got shape %s", kOp, name,
                wide(batch), shape_text(*lengths));
  }
  if (!packed) return ANYNPU_OK;
  if (args.q.shape[0] == 1 && (is_paged(args) || args.k.shape[0] == 1)) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE, "%s: packed q and k must have one plane, got shapes %s and %s", kOp, shape_text(args.q),
              shape_text(args.k));
}

int32_t check_places(const Args& args) {
  ANYNPU_TRY(check_lengths(args));
  if (batch_size(args) > INT32_MAX) {
    return fail(ANYNPU_BAD_SHAPE, "%s: B must be at most %d, got %lld", kOp, INT32_MAX, wide(batch_size(args)));
  }
  if (!is_paged(args)) {
    if (args.k.shape[0] == args.q.shape[0]) return ANYNPU_OK;  // packed: one plane each
    return fail(ANYNPU_BAD_SHAPE, "%s: k must have %lld sequences as q has, got %lld", kOp, wide(args.q.shape[0]),
                wide(args.k.shape[0]));
  }
  ANYNPU_TRY(check_view("block_table", args.block_table, {ANYNPU_INT32}, 2));
  int64_t rows = 0;
  const bool fits = !__builtin_mul_overflow(args.block_table.shape[1], args.k.shape[1], &rows) && rows < kEverywhere;
  if (!fits || args.block_table.shape[0] != batch_size(args)) {
    return fail(ANYNPU_BAD_SHAPE, "%s: block_table must be [B, blocks] with B = %lld, got shape %s", kOp,
                wide(batch_size(args)), shape_text(args.block_table));
  }
  if (present(args.kv_lengths)) return ANYNPU_OK;
  return fail(ANYNPU_NULL_ARG, "%s: kv_lengths must be given for a block_table", kOp);
}

// A mask or bias.
int32_t check_planes(const char* name, const anynpu_tensor& tensor, std::initializer_list<int32_t> dtypes,
                     const Args& args) {
  if (!present(tensor)) return ANYNPU_OK;
  ANYNPU_TRY(check_view(name, tensor, dtypes, 4));
  const int64_t planes = tensor.shape[0], heads = tensor.shape[1];
  if (is_packed(args)) return fail(ANYNPU_UNSUPPORTED, "%s: %s is not implemented for packed sequences", kOp, name);
  if ((planes == 1 || planes == batch_size(args)) && (heads == 1 || heads == q_heads(args))) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE, "%s: %s must have 1 or %lld sequences and 1 or %lld heads, got shape %s", kOp, name,
              wide(batch_size(args)), wide(q_heads(args)), shape_text(tensor));
}

int32_t check_bias(const Args& args) {
  ANYNPU_TRY(check_planes("bias", args.bias, {ANYNPU_FLOAT32, ANYNPU_FLOAT16, ANYNPU_BFLOAT16}, args));
  if (!present(args.bias) || args.bias.shape[3] <= 1 || args.bias.strides[3] == 1) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE, "%s: the last axis of bias should be contiguous", kOp);
}

// An int8 q with what its products are multiplied by.
int32_t check_integer_products(const Args& args) {
  if (!has_integer_products(args)) {
    if (!present(args.p_scale)) return ANYNPU_OK;
    return fail(ANYNPU_BAD_DTYPE, "%s: p_scale is for int8 q, got %s", kOp, dtype_name(args.q.dtype));
  }
  ANYNPU_TRY(check_view("p_scale", args.p_scale, {ANYNPU_FLOAT32, ANYNPU_FLOAT16, ANYNPU_BFLOAT16}, 1));
  if (args.p_scale.shape[0] != 1) {
    return fail(ANYNPU_BAD_SHAPE, "%s: p_scale must have shape (1,), got %s", kOp, shape_text(args.p_scale));
  }
  const bool by_head = !of_tokens(args.k_scale) && !of_tokens(args.v_scale) && args.k_scale.shape[3] == 1 &&
                       args.v_scale.shape[3] == 1 && !present(args.k_offset) && !present(args.v_offset);
  if (by_head) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE, "%s: k and v of int8 q must have one scale for each head and no offsets", kOp);
}

int32_t check_sink(const Args& args) {
  if (!present(args.sink)) return ANYNPU_OK;
  ANYNPU_TRY(check_view("sink", args.sink, {ANYNPU_FLOAT32, ANYNPU_FLOAT16, ANYNPU_BFLOAT16}, 1));
  if (args.sink.shape[0] == q_heads(args)) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE, "%s: sink must have shape (%lld,), one score a head, got %s", kOp, wide(q_heads(args)),
              shape_text(args.sink));
}

int32_t check_result_factors(const char* name, const anynpu_tensor& factors, const Args& args) {
  ANYNPU_TRY(check_view(name, factors, {ANYNPU_FLOAT32, ANYNPU_FLOAT16, ANYNPU_BFLOAT16}, 2));
  const int64_t heads = q_heads(args), size = args.v.shape[3];
  const bool fits = (factors.shape[0] == 1 || factors.shape[0] == heads) &&
                    (factors.shape[1] == 1 || (factors.shape[1] == size && factors.strides[1] == 1));
  if (fits) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE, "%s: %s must have 1 or %lld heads of 1 or %lld contiguous values, got shape %s", kOp,
              name, wide(heads), wide(size), shape_text(factors));
}

int32_t check_result_quantisation(const Args& args) {
  if (!present(args.out_scale)) {
    if (!present(args.out_offset)) return ANYNPU_OK;
    return fail(ANYNPU_NULL_ARG, "%s: out_scale must be given for an out_offset", kOp);
  }
  ANYNPU_TRY(check_result_factors("out_scale", args.out_scale, args));
  return present(args.out_offset) ? check_result_factors("out_offset", args.out_offset, args) : ANYNPU_OK;
}

int32_t check_results(const Args& args) {
  const int32_t of_floats = has_integer_products(args) ? static_cast<int32_t>(ANYNPU_FLOAT16) : args.q.dtype;
  const int32_t dtype = present(args.out_scale) ? static_cast<int32_t>(ANYNPU_INT8) : of_floats;
  ANYNPU_TRY(check_heads("out", args.out, {dtype}, Access::write));
  ANYNPU_TRY(check_same("out", args.out, "q", args.q, 0, 3));
  ANYNPU_TRY(check_same("out", args.out, "v", args.v, 3, 4));
  if (!present(args.lse)) return ANYNPU_OK;
  ANYNPU_TRY(check_view("lse", args.lse, {ANYNPU_FLOAT32}, 3, Access::write));
  return check_same("lse", args.lse, "q", args.q, 0, 3);
}

}  // namespace

FusedArgs with_int4(const FusedArgs& args) {
  FusedArgs made = args;
  made.k = as_int4(args.k);
  made.v = as_int4(args.v);
  return made;
}

int32_t check_fused_attention(const FusedArgs& args) {
  ANYNPU_TRY(check_q_k_v(args));
  ANYNPU_TRY(check_rope(args));
  ANYNPU_TRY(check_antiquant(args));
  ANYNPU_TRY(check_integer_products(args));
  ANYNPU_TRY(check_places(args));
  ANYNPU_TRY(check_planes("mask", args.mask, {ANYNPU_BOOL, ANYNPU_INT8, ANYNPU_UINT8}, args));
  ANYNPU_TRY(check_bias(args));
  ANYNPU_TRY(check_sink(args));
  ANYNPU_TRY(check_result_quantisation(args));
  return check_results(args);
}

int32_t check_fused_data(const FusedArgs& args) {
  const struct {
    const char* name;
    const anynpu_tensor* tensor;
  } tensors[] = {{"q", &args.q},
                 {"k", &args.k},
                 {"v", &args.v},
                 {"q_rope", &args.q_rope},
                 {"k_rope", &args.k_rope},
                 {"k_scale", &args.k_scale},
                 {"k_offset", &args.k_offset},
                 {"v_scale", &args.v_scale},
                 {"v_offset", &args.v_offset},
                 {"block_table", &args.block_table},
                 {"mask", &args.mask},
                 {"sink", &args.sink},
                 {"q_lengths", &args.q_lengths},
                 {"kv_lengths", &args.kv_lengths},
                 {"out_scale", &args.out_scale},
                 {"out_offset", &args.out_offset},
                 {"bias", &args.bias},
                 {"p_scale", &args.p_scale},
                 {"out", &args.out},
                 {"lse", &args.lse}};
  for (const auto& entry : tensors) ANYNPU_TRY(check_data(kOp, entry.name, *entry.tensor));
  return ANYNPU_OK;
}

}  // namespace anynpu
