// SPDX-License-Identifier: Apache-2.0
#include "ops/fused_attention/aclnn_attention.h"

#include <string>

#include "acl/executor/tensor.h"
#include "core/tensor.h"
#include "ops/fused_attention/aclnn_padding.h"
#include "ops/fused_attention/aclnn_prefix.h"

namespace anynpu::attention {
namespace {

using Stage = acl::FirstStage<Args>;

constexpr int64_t kTriangle = 2048;  // rows and columns of the mask that stands for a causal or banded one
enum SparseMode { kGivenMask, kWholeMask, kCausalFromTopLeft, kCausal, kBand };
enum AntiQuantMode { kChannel, kToken, kHead, kTokenHead, kPagedToken, kPagedTokenHead };

// The first or second half of a tensor whose first axis is 2.
void* half(const anynpu_tensor& both, int index) {
  if (element_count(both) == 0) return both.data;  // its strides may be anything
  return acl::advanced(both.data, index * both.strides[0] * (dtype_bits(both.dtype) / 8));
}

anynpu_tensor lengths(const std::vector<int64_t>& values) {
  if (values.empty()) return {};
  const auto count = static_cast<int64_t>(values.size());
  return {const_cast<int64_t*>(values.data()), ANYNPU_INT64, ANYNPU_ND, 1, 0, {count}, {1}};
}

anynpu_fused_attention_args flat(const Args& args) {
  anynpu_fused_attention_args made = args;
  made.q_lengths = lengths(args.q_values);
  made.kv_lengths = lengths(args.kv_values);
  if (present(args.all_scales)) {
    made.k_scale.data = half(args.all_scales, 0);
    made.v_scale.data = half(args.all_scales, 1);
  }
  if (present(args.score_scale)) {
    made.k_scale.data = args.score_scale.data;
    made.v_scale.data = args.value_scale.data;
  }
  if (present(args.all_offsets)) {
    made.k_offset.data = half(args.all_offsets, 0);
    made.v_offset.data = half(args.all_offsets, 1);
  }
  return made;
}

// The call with a mask instead of the lengths of padded sequences and all that hides.
anynpu_fused_attention_args masked(anynpu_fused_attention_args call, const anynpu_tensor& mask) {
  call.mask = mask;
  call.q_lengths = call.kv_lengths = {};
  call.before = call.after = kAll;
  call.from_end = 0;
  return call;
}

// The attributes that say what axes mean.
struct Form {
  std::string source, target;  // of inputs and results
  int64_t heads, kv_heads;
  bool paged;
  bool is_packed() const { return source == "TND"; }
};

Form form_of(Stage& stage, const char* layout, std::initializer_list<const char*> layouts, int64_t heads,
             int64_t kv_heads, bool paged) {
  const std::string name = layout == nullptr ? "BSH" : layout;
  std::string known;
  bool found = false;
  for (const char* each : layouts) {
    found = found || name == each;
    known += (known.empty() ? "" : ", ") + std::string(each);
  }
  stage.require(found, "inputLayout must be one of %s, got %s", known.c_str(), name.c_str());
  stage.require(heads > 0, "numHeads must be greater than 0, got %lld", wide(heads));
  stage.require(kv_heads >= 0, "numKeyValueHeads must be at least 0, got %lld", wide(kv_heads));
  const size_t mark = name.find('_');
  return {name.substr(0, mark), mark == std::string::npos ? name : name.substr(mark + 1), heads,
          kv_heads == 0 ? heads : kv_heads, paged};
}

// Puts the axes of a tensor in the order B, S, N, D. H is heads of D values; T is S without B.
void arrange(Stage& stage, const char* name, anynpu_tensor& tensor, const std::string& layout, int64_t heads) {
  if (!stage.ok() || !present(tensor)) return;
  const anynpu_tensor given = tensor;
  const int last = given.ndim - 1;
  stage.require(given.ndim == static_cast<int>(layout.size()), "%s must have %zu axes in layout %s, got shape %s", name,
                layout.size(), layout.c_str(), shape_text(given));
  if (!stage.ok()) return;
  const bool joined = layout[last] == 'H';
  stage.require(!joined || given.shape[last] % heads == 0,
                "the last axis of %s must be a multiple of its %lld heads, got %lld", name, wide(heads),
                wide(given.shape[last]));
  tensor.ndim = 4;
  for (int axis = 0; axis < 4; ++axis) {
    size_t at = layout.find("BSND"[axis]);
    if (at == std::string::npos && axis == 1) at = layout.find('T');
    const bool found = at != std::string::npos;
    tensor.shape[axis] = found ? given.shape[at] : 1;
    tensor.strides[axis] = found ? given.strides[at] : 0;
  }
  if (joined) {
    const int64_t size = given.shape[last] / heads;
    tensor.shape[2] = heads;
    // Strides of a tensor without elements may be anything.
    if (__builtin_mul_overflow(size, given.strides[last], &tensor.strides[2])) tensor.strides[2] = 0;
    tensor.shape[3] = size;
    tensor.strides[3] = given.strides[last];
  }
  stage.require(tensor.shape[2] == heads, "axis %zu of %s must be its %lld heads, got %lld", layout.find('N'), name,
                wide(heads), wide(tensor.shape[2]));
}

void arrange_cache(Stage& stage, const char* name, anynpu_tensor& tensor, const Form& form, int64_t block_size) {
  if (!stage.ok() || !present(tensor)) return;
  if (!form.paged) return arrange(stage, name, tensor, form.source, form.kv_heads);
  stage.require(tensor.ndim != 5, "%s in 5 axes (FRACTAL_NZ) is not implemented with a block table, only 3 and 4",
                name);
  arrange(stage, name, tensor, tensor.ndim == 3 ? "BSH" : "BNSD", form.kv_heads);
  stage.require(block_size == tensor.shape[1], "blockSize must be that of %s, %lld, got %lld", name,
                wide(tensor.shape[1]), wide(block_size));
}

// Scales or offsets of keys or values in codes: the axes B, S, N, D of what they belong to, 1 where they do not change.
void arrange_factors(Stage& stage, const char* name, anynpu_tensor& factors, int64_t mode, const anynpu_tensor& codes,
                     const Form& form) {
  if (!stage.ok() || !present(factors)) return;
  const bool of_blocks = mode == kPagedToken || mode == kPagedTokenHead,
             by_head = mode == kTokenHead || mode == kPagedTokenHead;
  stage.require(of_blocks ? form.paged : mode == kChannel || mode == kHead || !(form.paged || form.is_packed()),
                "%s of mode %lld is not implemented %s a block table%s", name, wide(mode),
                of_blocks ? "without" : "with", of_blocks ? "" : " or in layout TND");
  if (!stage.ok()) return;
  const int64_t count = element_count(factors), heads = form.kv_heads,
                size = codes.shape[3] * (codes.dtype == ANYNPU_INT32 ? 8 : 1);  // eight int4 a word
  anynpu_tensor given = factors;
  factors.ndim = 4;
  if (mode == kChannel || mode == kHead) {
    const int64_t width = mode == kHead ? 1 : size;
    const bool one = mode == kChannel && count == 1;
    stage.require(one || (count == heads * width && is_contiguous(given)),
                  "%s must hold %lld values of mode %lld side by side, got shape %s", name, wide(heads * width),
                  wide(mode), shape_text(given));
    const int64_t shape[] = {1, 1, one ? 1 : heads, one ? 1 : width};
    std::copy(shape, shape + 4, factors.shape);
    return make_contiguous(factors);
  }
  const int axes = by_head ? 3 : 2, extra = given.ndim == axes + 1 && given.shape[0] == 1 ? 1 : 0;
  stage.require(given.ndim == axes + extra, "%s must have %d axes in mode %lld, got shape %s", name, axes, wide(mode),
                shape_text(given));
  const int64_t *shape = given.shape + extra, *strides = given.strides + extra;
  const int token = axes - 1;
  const int64_t sizes[] = {shape[0], shape[token], by_head ? shape[1] : 1, 1};
  const int64_t steps[] = {strides[0], strides[token], by_head ? strides[1] : 0, 0};
  std::copy(sizes, sizes + 4, factors.shape);
  std::copy(steps, steps + 4, factors.strides);
}

// The tensor without its first axis, of size 2.
anynpu_tensor without_pair(Stage& stage, const char* name, const anynpu_tensor& both) {
  if (!stage.ok() || !present(both)) return {};
  stage.require(both.ndim >= 1 && both.shape[0] == 2, "the first axis of %s must be 2, for key and value, got shape %s",
                name, shape_text(both));
  anynpu_tensor made = both;
  made.data = nullptr;
  made.ndim = std::max(0, both.ndim - 1);
  std::copy(both.shape + 1, both.shape + ANYNPU_MAX_DIMS, made.shape);
  std::copy(both.strides + 1, both.strides + ANYNPU_MAX_DIMS, made.strides);
  return made;
}

void arrange_stacked(Stage& stage, int64_t mode, const Form& form) {
  Args& args = stage.args;
  stage.require(present(args.all_scales) || !present(args.all_offsets), "antiquantOffset needs a scale");
  stage.require(!present(args.all_scales) || mode == kChannel || mode == kToken,
                "antiquantMode must be 0 or 1, got %lld", wide(mode));
  args.k_scale = args.v_scale = without_pair(stage, "antiquantScale", args.all_scales);
  args.k_offset = args.v_offset = without_pair(stage, "antiquantOffset", args.all_offsets);
  arrange_factors(stage, "antiquantScale", args.k_scale, mode, args.k, form);
  arrange_factors(stage, "antiquantScale", args.v_scale, mode, args.v, form);
  arrange_factors(stage, "antiquantOffset", args.k_offset, mode, args.k, form);
  arrange_factors(stage, "antiquantOffset", args.v_offset, mode, args.v, form);
}

void arrange_separate(Stage& stage, int64_t key_mode, int64_t value_mode, const Form& form) {
  Args& args = stage.args;
  const bool known = key_mode >= kChannel && key_mode <= kPagedTokenHead &&
                     (key_mode == value_mode || (key_mode == kChannel && value_mode == kToken));
  stage.require(known, "keyAntiquantMode and valueAntiquantMode must be equal, 0 to 5, or 0 and 1, got %lld and %lld",
                wide(key_mode), wide(value_mode));
  arrange_factors(stage, "keyAntiquantScaleOptional", args.k_scale, key_mode, args.k, form);
  arrange_factors(stage, "keyAntiquantOffsetOptional", args.k_offset, key_mode, args.k, form);
  arrange_factors(stage, "valueAntiquantScaleOptional", args.v_scale, value_mode, args.v, form);
  arrange_factors(stage, "valueAntiquantOffsetOptional", args.v_offset, value_mode, args.v, form);
}

// One factor of the int8 result, or one for each of its heads and channels.
void arrange_result_factors(Stage& stage, const char* name, anynpu_tensor& factors) {
  if (!stage.ok() || !present(factors)) return;
  const int64_t count = element_count(factors), heads = stage.args.q.shape[2], size = stage.args.out.shape[3];
  stage.require(count == 1 || (count == heads * size && is_contiguous(factors)),
                "%s must hold 1 or %lld values side by side, got shape %s", name, wide(heads * size),
                shape_text(factors));
  factors.ndim = 2;
  factors.shape[0] = count == 1 ? 1 : heads;
  factors.shape[1] = count == 1 ? 1 : size;
  make_contiguous(factors);
}

// Null or without elements: absent.
void take_optional(Stage& stage, const char* name, const aclTensor* handle, anynpu_tensor Args::* field) {
  stage.optional(name, handle, field);
  if (stage.ok() && element_count(stage.args.*field) == 0) stage.args.*field = {};
}

// The names of what belongs to int8 queries, in the order of the products.
struct ProductNames {
  const char *score_scale, *weight_scale, *value_scale;
};

template <typename Call>
void take_products(Stage& stage, const ProductNames& names, const Call& call) {
  take_optional(stage, names.score_scale, call.deq_scale1, &Args::score_scale);
  take_optional(stage, names.weight_scale, call.quant_scale1, &Args::p_scale);
  take_optional(stage, names.value_scale, call.deq_scale2, &Args::value_scale);
  if (!stage.ok()) return;
  const Args& args = stage.args;
  const bool all = present(args.score_scale) && present(args.p_scale) && present(args.value_scale);
  const bool none = !present(args.score_scale) && !present(args.p_scale) && !present(args.value_scale);
  const bool is_int8 = args.q.dtype == ANYNPU_INT8;
  stage.require(is_int8 ? all : none, "%s, %s and %s must be given for an int8 query, and for no other",
                names.score_scale, names.weight_scale, names.value_scale);
}

// One value, of a float dtype or, as the chips' words have it, in the low half of 64 bits.
anynpu_tensor one_value(Stage& stage, const char* name, anynpu_tensor value) {
  stage.require(element_count(value) == 1, "%s must hold one value, got shape %s", name, shape_text(value));
  if (value.dtype == ANYNPU_UINT64 || value.dtype == ANYNPU_INT64) value.dtype = ANYNPU_FLOAT32;
  value.ndim = 4;
  std::fill_n(value.shape, 4, int64_t{1});
  make_contiguous(value);
  return value;
}

void arrange_products(Stage& stage) {
  Args& args = stage.args;
  if (!stage.ok() || !present(args.score_scale)) return;
  stage.require(!present(args.k_scale) && !present(args.k_offset), "an int8 query excludes scales of antiquantisation");
  args.k_scale = one_value(stage, "the scale of scores", args.score_scale);
  args.v_scale = one_value(stage, "the scale of values", args.value_scale);
  args.p_scale = one_value(stage, "the scale of weights", args.p_scale);
  args.p_scale.ndim = 1;
}

// (S, Skv), (B or 1, S, Skv) or (B or 1, N or 1, S, Skv), and (B or 1, Skv) where queries have one token.
void arrange_mask(Stage& stage, anynpu_tensor& mask, bool one_row) {
  if (!stage.ok() || !present(mask)) return;
  stage.require(mask.ndim >= 2 && mask.ndim <= 4, "attenMask must have 2 to 4 axes, got shape %s", shape_text(mask));
  if (!stage.ok()) return;
  const anynpu_tensor given = mask;
  const int at = given.ndim - 1;
  const bool of_batches = given.ndim == 2 && one_row;
  const int64_t sizes[] = {of_batches || given.ndim > 2 ? given.shape[0] : 1, given.ndim == 4 ? given.shape[1] : 1,
                           of_batches ? 1 : given.shape[at - 1], given.shape[at]};
  const int64_t steps[] = {given.strides[0], given.strides[1], of_batches ? 0 : given.strides[at - 1],
                           given.strides[at]};
  mask.ndim = 4;
  std::copy(sizes, sizes + 4, mask.shape);
  std::copy(steps, steps + 4, mask.strides);
}

void set_visible(Stage& stage, const Visible& visible, bool one_row) {
  Args& args = stage.args;
  args.before = args.after = kAll;
  const int64_t mode = visible.mode;
  const bool masked = present(args.mask) || present(args.triangle);
  stage.require(mode >= kGivenMask && mode <= kBand, "sparseMode must be 0, 1, 2, 3 or 4, got %lld", wide(mode));
  if (one_row && !masked) return;  // the mode and its tokens have no effect
  stage.require(mode == kGivenMask || masked, "attenMaskOptional must be given for sparseMode %lld", wide(mode));
  stage.require(!one_row || mode <= kWholeMask || mode == kCausal,
                "sparseMode must be 0, 1 or 3 for queries of one token, got %lld", wide(mode));
  if (present(args.triangle)) {
    const anynpu_tensor& mask = args.triangle;
    bool fits = mask.ndim >= 2 && mask.ndim <= 4;
    for (int axis = 0; axis < mask.ndim; ++axis)
      fits = fits && mask.shape[axis] == (axis < mask.ndim - 2 ? 1 : kTriangle);
    stage.require(fits, "attenMaskOptional must have shape (2048, 2048) for sparseMode %lld, got %s", wide(mode),
                  shape_text(mask));
  }
  if (!masked || one_row) return;
  if (mode == kGivenMask || mode == kBand) {
    args.before = visible.before;
    args.after = visible.after;
  } else if (mode != kWholeMask) {
    args.after = 0;
  }
  args.from_end = mode == kCausal || mode == kBand;
}

// A list of one serves all sequences.
void repeat(Stage& stage, const char* name, std::vector<int64_t>& values) {
  if (!stage.ok() || values.empty()) return;
  const int64_t batch = stage.args.q.shape[0];
  const auto count = static_cast<int64_t>(values.size());
  stage.require(count == 1 || count == batch, "%s must have 1 or %lld values, got %lld", name, wide(batch),
                wide(count));
  if (stage.ok() && count == 1) values.assign(batch < 1 << 20 ? batch : 1, values[0]);
}

// Sequences have planes of their own, and no scales that would have to move along.
bool rows_can_move(const Args& args, const Form& form) {
  const auto of_one = [](const anynpu_tensor& factors) { return factors.shape[0] <= 1 && factors.shape[1] <= 1; };
  return !form.is_packed() && !form.paged && of_one(args.k_scale) && of_one(args.v_scale);
}

// Tokens in front of `own`, keys or values.
void arrange_prefix(Stage& stage, const char* name, anynpu_tensor& prefix, const anynpu_tensor& own, const Form& form) {
  arrange(stage, name, prefix, form.source, form.kv_heads);
  if (!stage.ok()) return;
  stage.require(prefix.dtype == own.dtype && own.dtype != ANYNPU_INT4,
                "%s must have the dtype of what it precedes, which is not INT4, got %s and %s", name,
                dtype_name(prefix.dtype), dtype_name(own.dtype));
  stage.require(prefix.shape[0] == 1 && prefix.shape[3] == own.shape[3],
                "%s must have one sequence of heads of %lld, got %lld of %lld", name, wide(own.shape[3]),
                wide(prefix.shape[0]), wide(prefix.shape[3]));
}

void arrange_prefixes(Stage& stage, const FusedCall& call, const Form& form) {
  Args& args = stage.args;
  const std::vector<int64_t> lengths = stage.ints("actualSharedPrefixLenOptional", call.prefix_lengths);
  stage.require(present(args.k_prefix) == present(args.v_prefix),
                "keySharedPrefixOptional and valueSharedPrefixOptional must be given together");
  stage.require(has_prefix(args) || lengths.empty(), "actualSharedPrefixLenOptional needs keySharedPrefixOptional");
  if (!stage.ok() || !has_prefix(args)) return;
  stage.require(
      rows_can_move(args, form) && !is_padded(args),
      "shared prefixes are not implemented in layout TND, with a block table, scales of tokens or padding sizes");
  arrange_prefix(stage, "keySharedPrefixOptional", args.k_prefix, args.k, form);
  arrange_prefix(stage, "valueSharedPrefixOptional", args.v_prefix, args.v, form);
  const int64_t tokens = args.k_prefix.shape[1];
  stage.require(args.v_prefix.shape[1] == tokens,
                "valueSharedPrefixOptional must have %lld tokens as keys have, got %lld", wide(tokens),
                wide(args.v_prefix.shape[1]));
  stage.require(args.k.shape[1] <= kAll && tokens <= kAll, "sequences with prefixes must have at most %lld tokens",
                wide(kAll));
  stage.require(lengths.size() <= 1, "actualSharedPrefixLenOptional must hold one value, got %zu", lengths.size());
  args.prefix_count = lengths.empty() ? tokens : lengths[0];
  stage.require(args.prefix_count >= 0 && args.prefix_count <= tokens,
                "actualSharedPrefixLenOptional must be in [0, %lld], got %lld", wide(tokens), wide(args.prefix_count));
  for (int64_t& length : args.kv_values) {
    stage.require(length >= 0 && length <= args.k.shape[1], "actualSeqLengthsKvOptional must be in [0, %lld], got %lld",
                  wide(args.k.shape[1]), wide(length));
    if (stage.ok()) length += args.prefix_count;
  }
}

// One size, for sequences of known lengths.
void check_padding(Stage& stage, const char* name, const anynpu_tensor& padding, const std::vector<int64_t>& lengths,
                   int64_t rows) {
  if (!stage.ok() || !present(padding)) return;
  stage.require(padding.dtype == ANYNPU_INT64 || padding.dtype == ANYNPU_INT32, "%s must be int64 or int32, got %s",
                name, dtype_name(padding.dtype));
  stage.require(element_count(padding) == 1, "%s must hold one value, got shape %s", name, shape_text(padding));
  stage.require(!lengths.empty(), "%s needs the lengths of its sequences", name);
  for (const int64_t length : lengths) {
    stage.require(length >= 0 && length <= rows, "lengths of padded sequences must be in [0, %lld], got %lld",
                  wide(rows), wide(length));
  }
}

void check_paddings(Stage& stage, const Form& form) {
  const Args& args = stage.args;
  if (!stage.ok() || !is_padded(args)) return;
  stage.require(rows_can_move(args, form),
                "padding sizes are not implemented in layout TND, with a block table or with scales of tokens");
  check_padding(stage, "queryPaddingSize", args.q_padding, args.q_values, args.q.shape[1]);
  check_padding(stage, "kvPaddingSize", args.kv_padding, args.kv_values, args.k.shape[1]);
  const anynpu_tensor& mask = args.mask;
  stage.require(!present(mask) || (mask.shape[2] >= args.q.shape[1] && mask.shape[3] >= args.k.shape[1]),
                "attenMask must have all rows and columns beside padding sizes, got shape %s", shape_text(mask));
}

// What the documents limit on Atlas A2 without looking at data.
void limit(Stage& stage, const Form& form, int64_t block_size) {
  if (!stage.ok()) return;
  const anynpu_tensor &q = stage.args.q, &k = stage.args.k;
  stage.limit(q.dtype != ANYNPU_FLOAT32, "wants query in float16 or bfloat16, got float32");
  stage.limit(q.shape[0] <= 65536, "wants B <= 65536, got %lld", wide(q.shape[0]));
  stage.limit(form.heads <= 256, "wants numHeads <= 256, got %lld", wide(form.heads));
  stage.limit(form.heads / form.kv_heads <= 64, "wants numHeads / numKeyValueHeads <= 64, got %lld",
              wide(form.heads / form.kv_heads));
  stage.limit(q.shape[3] <= 512, "wants heads of at most 512 values, got %lld", wide(q.shape[3]));
  const int64_t step = k.dtype == ANYNPU_INT8 ? 32 : 16;
  stage.limit(!form.paged || (block_size % step == 0 && block_size <= 512),
              "wants blockSize to be a multiple of %lld and at most 512, got %lld", wide(step), wide(block_size));
}

void take_codes(Stage& stage, const FusedCall& call) {
  stage.optional("keyAntiquantScaleOptional", call.key_scale, &Args::k_scale);
  stage.optional("keyAntiquantOffsetOptional", call.key_offset, &Args::k_offset);
  stage.optional("valueAntiquantScaleOptional", call.value_scale, &Args::v_scale);
  stage.optional("valueAntiquantOffsetOptional", call.value_offset, &Args::v_offset);
  const Args& args = stage.args;
  stage.require(present(args.k_scale) == present(args.v_scale),
                "keyAntiquantScaleOptional and valueAntiquantScaleOptional must be given together");
  stage.require(present(args.k_scale) || (!present(args.k_offset) && !present(args.v_offset)),
                "keyAntiquantOffsetOptional and valueAntiquantOffsetOptional need scales");
}

void take_inputs(Stage& stage, const FusedCall& call) {
  const bool separate = call.key_scale != nullptr;
  stage.input("query", call.query, &Args::q);
  stage.input("key", stage.only("key", call.key), &Args::k);
  stage.input("value", stage.only("value", call.value), &Args::v);
  take_optional(stage, "pseShiftOptional", call.pse_shift, &Args::bias);
  stage.optional("attenMaskOptional", call.mask,
                 call.visible.mode >= kCausalFromTopLeft ? &Args::triangle : &Args::mask);
  stage.args.q_values = stage.ints("actualSeqLengthsOptional", call.q_lengths);
  stage.args.kv_values = stage.ints("actualSeqLengthsKvOptional", call.kv_lengths);
  take_products(stage, {"deqScale1Optional", "quantScale1Optional", "deqScale2Optional"}, call);
  take_optional(stage, "quantScale2Optional", call.quant_scale2, &Args::out_scale);
  take_optional(stage, "quantOffset2Optional", call.quant_offset2, &Args::out_offset);
  if (separate) {
    stage.unused("antiquantScaleOptional", call.scale);
    stage.unused("antiquantOffsetOptional", call.offset);
  } else {
    stage.optional("antiquantScaleOptional", call.scale, &Args::all_scales);
    stage.optional("antiquantOffsetOptional", call.offset, &Args::all_offsets);
  }
  stage.optional("blockTableOptional", call.block_table, &Args::block_table);
  take_optional(stage, "queryPaddingSizeOptional", call.query_padding, &Args::q_padding);
  take_optional(stage, "kvPaddingSizeOptional", call.kv_padding, &Args::kv_padding);
  take_codes(stage, call);
  take_optional(stage, "keySharedPrefixOptional", call.key_prefix, &Args::k_prefix);
  take_optional(stage, "valueSharedPrefixOptional", call.value_prefix, &Args::v_prefix);
  stage.optional("queryRopeOptional", call.query_rope, &Args::q_rope);
  stage.optional("keyRopeOptional", call.key_rope, &Args::k_rope);
  stage.reserved("keyRopeAntiquantScaleOptional", call.key_rope_scale);
}

void arrange_all(Stage& stage, const FusedCall& call, const Form& form) {
  Args& args = stage.args;
  arrange(stage, "query", args.q, form.source, form.heads);
  arrange_cache(stage, "key", args.k, form, call.block_size);
  arrange_cache(stage, "value", args.v, form, call.block_size);
  arrange(stage, "queryRopeOptional", args.q_rope, form.source, form.heads);
  arrange_cache(stage, "keyRopeOptional", args.k_rope, form, call.block_size);
  if (call.key_scale == nullptr) {
    arrange_stacked(stage, call.mode, form);
  } else {
    arrange_separate(stage, call.key_mode, call.value_mode, form);
  }
  arrange_products(stage);
  arrange(stage, "attentionOut", args.out, form.target, form.heads);
  arrange_result_factors(stage, "quantScale2", args.out_scale);
  arrange_result_factors(stage, "quantOffset2", args.out_offset);
  arrange(stage, "softmaxLse", args.lse, form.is_packed() ? "TND" : "BNSD", form.heads);
  stage.require(!present(args.lse) || args.lse.shape[3] == 1, "the last axis of softmaxLse must be 1");
  if (present(args.lse)) args.lse.ndim = 3;
  args.packed = form.is_packed();
  args.softmax_scale = static_cast<float>(call.softmax_scale);
  if (form.is_packed()) {
    stage.require(!args.q_values.empty() && !args.kv_values.empty(),
                  "actualSeqLengthsOptional and actualSeqLengthsKvOptional must be given in layout TND");
    return;
  }
  repeat(stage, "actualSeqLengthsOptional", args.q_values);
  repeat(stage, "actualSeqLengthsKvOptional", args.kv_values);
}

void arrange_call(Stage& stage, const FusedCall& call, const Form& form) {
  arrange_all(stage, call, form);
  const bool one_row = stage.args.q.shape[1] == 1 && !form.is_packed();
  arrange_mask(stage, stage.args.mask, one_row);
  set_visible(stage, call.visible, one_row);
  arrange_prefixes(stage, call, form);
  check_paddings(stage, form);
  limit(stage, form, call.block_size);
}

}  // namespace

int32_t check(const Args* args, size_t* workspace_bytes) {
  anynpu_fused_attention_args made = flat(*args);
  if (has_prefix(*args)) {
    made.k = joined(args->k, args->prefix_count);
    made.v = joined(args->v, args->prefix_count);
  }
  ANYNPU_TRY(anynpu_fused_attention_check(&made, workspace_bytes));
  if (!is_padded(*args)) return ANYNPU_OK;
  made = masked(made, padded_mask(*args));
  return anynpu_fused_attention_check(&made, workspace_bytes);
}

int32_t run(const Args* args, void* workspace, size_t workspace_bytes) {
  anynpu_fused_attention_args made = flat(*args);
  std::unique_ptr<uint8_t[]> keys, values;
  std::vector<uint8_t> hidden;
  if (has_prefix(*args)) {
    ANYNPU_TRY(join(args->k_prefix, args->k, args->prefix_count, &made.k, &keys));
    ANYNPU_TRY(join(args->v_prefix, args->v, args->prefix_count, &made.v, &values));
  }
  if (is_padded(*args)) {
    anynpu_tensor mask = padded_mask(*args);
    hidden.resize(element_count(mask));
    fill_padded_mask(*args, hidden.data());
    mask.data = hidden.data();
    made = masked(made, mask);
  }
  return anynpu_fused_attention(&made, workspace, workspace_bytes);
}

aclnnStatus fused(const acl::Operator& op, const FusedCall& call, uint64_t* workspace_size, aclOpExecutor** executor) {
  return acl::first_stage<Args>(op, workspace_size, executor, [&](Stage& stage) {
    take_inputs(stage, call);
    stage.output("attentionOut", call.out, &Args::out);
    if (call.with_lse) {
      stage.output("softmaxLse", call.lse, &Args::lse);
    } else {
      stage.unused("softmaxLse", call.lse);
    }
    const auto layouts = {"BSH", "BSND", "BNSD", "BNSD_BSND", "BSH_NBSD", "BSND_NBSD", "BNSD_NBSD", "TND", "TND_NTD"};
    const Form form = form_of(stage, call.layout, layouts, call.heads, call.kv_heads, present(stage.args.block_table));
    arrange_call(stage, call, form);
  });
}

aclnnStatus increment(const acl::Operator& op, const IncreCall& call, uint64_t* workspace_size,
                      aclOpExecutor** executor) {
  return acl::first_stage<Args>(op, workspace_size, executor, [&](Stage& stage) {
    stage.input("query", call.query, &Args::q);
    stage.input("key", stage.only("key", call.key), &Args::k);
    stage.input("value", stage.only("value", call.value), &Args::v);
    take_optional(stage, "pseShift", call.pse_shift, &Args::bias);
    stage.optional("attenMask", call.mask, &Args::mask);
    stage.args.kv_values = stage.ints("actualSeqLengths", call.lengths);
    take_products(stage, {"dequantScale1", "quantScale1", "dequantScale2"}, call);
    take_optional(stage, "quantScale2", call.quant_scale2, &Args::out_scale);
    take_optional(stage, "quantOffset2", call.quant_offset2, &Args::out_offset);
    stage.optional("antiquantScale", call.scale, &Args::all_scales);
    stage.optional("antiquantOffset", call.offset, &Args::all_offsets);
    stage.optional("blocktable", call.block_table, &Args::block_table);
    take_optional(stage, "kvPaddingSize", call.kv_padding, &Args::kv_padding);
    stage.output("attentionOut", call.out, &Args::out);
    FusedCall fused{};
    fused.block_size = call.block_size;
    fused.softmax_scale = call.softmax_scale;
    const Form form = form_of(stage, call.layout, {"BSH", "BSND", "BNSD"}, call.heads, call.kv_heads,
                              present(stage.args.block_table));
    arrange_all(stage, fused, form);
    stage.require(stage.args.q.shape[1] == 1, "query must have one token for each sequence, got %lld",
                  wide(stage.args.q.shape[1]));
    arrange_mask(stage, stage.args.mask, true);
    set_visible(stage, {}, true);
    check_paddings(stage, form);
    limit(stage, form, call.block_size);
  });
}

aclnnStatus prompt(const acl::Operator& op, const PromptCall& call, uint64_t* workspace_size,
                   aclOpExecutor** executor) {
  return acl::first_stage<Args>(op, workspace_size, executor, [&](Stage& stage) {
    stage.input("query", call.query, &Args::q);
    stage.input("key", call.key, &Args::k);
    stage.input("value", call.value, &Args::v);
    take_optional(stage, "pseShift", call.pse_shift, &Args::bias);
    stage.optional("attenMask", call.mask, call.visible.mode >= kCausalFromTopLeft ? &Args::triangle : &Args::mask);
    stage.args.q_values = stage.ints("actualSeqLengths", call.q_lengths);
    stage.args.kv_values = stage.ints("actualSeqLengthsKv", call.kv_lengths);
    take_products(stage, {"deqScale1", "quantScale1", "deqScale2"}, call);
    take_optional(stage, "quantScale2", call.quant_scale2, &Args::out_scale);
    take_optional(stage, "quantOffset2", call.quant_offset2, &Args::out_offset);
    stage.output("attentionOut", call.out, &Args::out);
    FusedCall fused{};
    fused.softmax_scale = call.softmax_scale;
    fused.visible = call.visible;
    const auto layouts = {"BSH", "BSND", "BNSD", "BNSD_BSND"};
    arrange_call(stage, fused, form_of(stage, call.layout, layouts, call.heads, call.kv_heads, false));
  });
}

}  // namespace anynpu::attention
