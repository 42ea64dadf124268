// SPDX-License-Identifier: Apache-2.0
#include "ops/rope_kv_cache/rope_kv_cache.h"

#include <algorithm>
#include <iterator>

#include "core/parallel.h"
#include "core/scratch.h"
#include "core/strided.h"

namespace anynpu {

ANYNPU_KERNELS(RopeKernel, rope_kv_cache)

namespace {

constexpr const char* kOp = "rope_kv_cache";
constexpr int64_t kGrain = 1 << 15;  // values of x a thread; below it a second thread costs more than it gives
using Args = anynpu_rope_kv_cache_args;

// x is [B, S, H], or [B, H] with S = 1.
int64_t batch_size(const Args& args) { return args.x.shape[0]; }
int64_t sequence_length(const Args& args) { return args.x.ndim == 3 ? args.x.shape[1] : 1; }
int64_t token_count(const Args& args) { return batch_size(args) * sequence_length(args); }
int64_t row_width(const Args& args) { return args.x.shape[args.x.ndim - 1]; }
int64_t kv_heads(const Args& args) { return args.k_cache.shape[2]; }
int64_t head_size(const Args& args) { return args.k_cache.shape[3]; }
bool is_paged(const Args& args) { return args.cache_mode == ANYNPU_CACHE_PAGE; }

int32_t check_caches(const Args& args) {
  ANYNPU_TRY(check_view(kOp, "k_cache", args.k_cache, {ANYNPU_INT8}));
  ANYNPU_TRY(check_view(kOp, "v_cache", args.v_cache, {ANYNPU_INT8}));
  if (args.k_cache.ndim != 4) {
    return fail(ANYNPU_BAD_SHAPE, "%s: k_cache must be [C1, C2, Nkv, D], got shape %s", kOp, shape_text(args.k_cache));
  }
  if (!same_shape(args.k_cache, args.v_cache)) {
    return fail(ANYNPU_BAD_SHAPE, "%s: v_cache must have the shape of k_cache, %s, got %s", kOp,
                shape_text(args.k_cache), shape_text(args.v_cache));
  }
  if (kv_heads(args) < 1 || head_size(args) < 2 || head_size(args) % 2 != 0) {
    return fail(ANYNPU_BAD_SHAPE, "%s: k_cache must have at least one head and an even head size, got shape %s", kOp,
                shape_text(args.k_cache));
  }
  ANYNPU_TRY(check_contiguous(kOp, "k_cache", args.k_cache));
  return check_contiguous(kOp, "v_cache", args.v_cache);
}

int32_t check_x(const Args& args) {
  ANYNPU_TRY(check_view(kOp, "x", args.x, {ANYNPU_INT32, ANYNPU_FLOAT16, ANYNPU_BFLOAT16, ANYNPU_FLOAT32}));
  if (args.x.ndim != 2 && args.x.ndim != 3) {
    return fail(ANYNPU_BAD_SHAPE, "%s: x must be [B, S, H] or [B, H], got shape %s", kOp, shape_text(args.x));
  }
  const int64_t* splits = args.size_splits;
  int64_t kv_width = 0;
  const bool fits = !__builtin_mul_overflow(kv_heads(args), head_size(args), &kv_width);
  if (!fits || splits[0] < 0 || splits[0] % head_size(args) != 0 || splits[1] != kv_width || splits[2] != kv_width) {
    return fail(ANYNPU_BAD_SHAPE,
                "%s: size_splits must be [Nq * D, Nkv * D, Nkv * D] with Nkv = %lld and D = %lld of k_cache, got "
                "[%lld, %lld, %lld]",
                kOp, wide(kv_heads(args)), wide(head_size(args)), wide(splits[0]), wide(splits[1]), wide(splits[2]));
  }
  int64_t width = 0;
  if (__builtin_add_overflow(splits[0], 2 * kv_width, &width) || row_width(args) != width) {
    return fail(ANYNPU_BAD_SHAPE, "%s: x.shape[-1] must be sum(size_splits) = %lld + %lld + %lld = %lld, got %lld", kOp,
                wide(splits[0]), wide(splits[1]), wide(splits[2]), wide(width), wide(row_width(args)));
  }
  return ANYNPU_OK;
}

int32_t check_angle(const Args& args, const char* name, const anynpu_tensor& angle) {
  ANYNPU_TRY(check_view(kOp, name, angle, {ANYNPU_FLOAT16, ANYNPU_BFLOAT16, ANYNPU_FLOAT32}));
  if (angle.dtype != args.cos.dtype) {
    return fail(ANYNPU_BAD_DTYPE, "%s: %s must have the dtype of cos, %s, got %s", kOp, name,
                dtype_name(args.cos.dtype), dtype_name(angle.dtype));
  }
  if (args.x.dtype != ANYNPU_INT32 && angle.dtype != args.x.dtype) {
    return fail(ANYNPU_BAD_DTYPE, "%s: %s must have the dtype of x, %s, got %s", kOp, name, dtype_name(args.x.dtype),
                dtype_name(angle.dtype));
  }
  const int64_t batch = batch_size(args), length = sequence_length(args), size = head_size(args);
  const bool flat = args.x.ndim == 2;
  if (flat ? has_shape(angle, {batch, size}) : has_shape(angle, {batch, length, 1, size})) return ANYNPU_OK;
  anynpu_tensor expected = angle;
  expected.ndim = flat ? 2 : 4;
  const int64_t shape[4] = {batch, flat ? size : length, 1, size};
  std::copy(shape, shape + 4, expected.shape);
  return fail(ANYNPU_BAD_SHAPE, "%s: %s must have shape %s = %s, got %s", kOp, name, flat ? "[B, D]" : "[B, S, 1, D]",
              shape_text(expected), shape_text(angle));
}

int32_t check_indices(const Args& args) {
  ANYNPU_TRY(check_view(kOp, "indices", args.indices, {ANYNPU_INT32}));
  const bool per_token = is_paged(args) && args.x.ndim == 3;
  const int64_t count = per_token ? token_count(args) : batch_size(args);
  if ((args.indices.ndim != 1 && args.indices.ndim != 2) || element_count(args.indices) != count) {
    return fail(ANYNPU_BAD_SHAPE, "%s: indices must have 1 or 2 axes and %s = %lld elements, got shape %s", kOp,
                per_token ? "B * S" : "B", wide(count), shape_text(args.indices));
  }
  return ANYNPU_OK;
}

int32_t check_head_parameter(const Args& args, const char* name, const anynpu_tensor& tensor) {
  ANYNPU_TRY(check_view(kOp, name, tensor, {ANYNPU_FLOAT32}));
  const int64_t heads = kv_heads(args), size = head_size(args);
  if (has_shape(tensor, {heads, size}) || (heads == 1 && has_shape(tensor, {size}))) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE, "%s: %s must have shape [Nkv, D] = (%lld, %lld), got %s", kOp, name, wide(heads),
              wide(size), shape_text(tensor));
}

// A longer tensor is fine: its leading part is used.
int32_t check_leading(const char* name, const anynpu_tensor& tensor, const char* symbol, int64_t count) {
  if (tensor.ndim == 1 && tensor.shape[0] >= count) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE, "%s: %s must have one axis of at least %s = %lld elements, got shape %s", kOp, name,
              symbol, wide(count), shape_text(tensor));
}

int32_t check_dequant(const Args& args) {
  if (args.x.dtype != ANYNPU_INT32) return ANYNPU_OK;
  if (!present(args.weight_scale)) {
    return fail(ANYNPU_NULL_ARG, "%s: weight_scale is required for int32 x, got none", kOp);
  }
  ANYNPU_TRY(check_view(kOp, "weight_scale", args.weight_scale, {ANYNPU_FLOAT32}));
  if (!has_shape(args.weight_scale, {row_width(args)})) {
    return fail(ANYNPU_BAD_SHAPE, "%s: weight_scale must have shape [H] = (%lld,), got %s", kOp, wide(row_width(args)),
                shape_text(args.weight_scale));
  }
  if (present(args.activation_scale)) {
    ANYNPU_TRY(check_view(kOp, "activation_scale", args.activation_scale, {ANYNPU_FLOAT32}));
    const char* symbol = args.x.ndim == 3 ? "B * S" : "B";
    ANYNPU_TRY(check_leading("activation_scale", args.activation_scale, symbol, token_count(args)));
  }
  if (!present(args.bias)) return ANYNPU_OK;
  ANYNPU_TRY(check_view(kOp, "bias", args.bias, {ANYNPU_INT32, ANYNPU_FLOAT32, ANYNPU_FLOAT16, ANYNPU_BFLOAT16}));
  return check_leading("bias", args.bias, "H", row_width(args));
}

int32_t check_output(const Args& args, const char* name, const anynpu_tensor& output, int64_t heads) {
  ANYNPU_TRY(check_view(kOp, name, output, {ANYNPU_FLOAT16, ANYNPU_BFLOAT16, ANYNPU_FLOAT32}));
  if (output.dtype != args.cos.dtype) {
    return fail(ANYNPU_BAD_DTYPE, "%s: %s must have the dtype of cos, %s, got %s", kOp, name,
                dtype_name(args.cos.dtype), dtype_name(output.dtype));
  }
  anynpu_tensor expected = output;
  expected.ndim = args.x.ndim + 1;
  std::copy(args.x.shape, args.x.shape + args.x.ndim - 1, expected.shape);
  expected.shape[args.x.ndim - 1] = heads;
  expected.shape[args.x.ndim] = head_size(args);
  ANYNPU_TRY(check_shape(kOp, name, output, expected));
  return check_contiguous(kOp, name, output);
}

int32_t check_outputs(const Args& args) {
  ANYNPU_TRY(check_output(args, "q", args.q, args.size_splits[0] / head_size(args)));
  if (present(args.k) != present(args.v)) {
    return fail(ANYNPU_BAD_SHAPE, "%s: k and v must both be given or both be absent", kOp);
  }
  if (!present(args.k)) return ANYNPU_OK;
  ANYNPU_TRY(check_output(args, "k", args.k, kv_heads(args)));
  return check_output(args, "v", args.v, kv_heads(args));
}

int32_t check_cache_room(const Args& args) {
  if (args.cache_mode != ANYNPU_CACHE_CONTIGUOUS && !is_paged(args)) {
    return fail(ANYNPU_BAD_SHAPE, "%s: cache_mode must be contiguous (0) or page (1), got %d", kOp, args.cache_mode);
  }
  if (is_paged(args)) return ANYNPU_OK;
  const int64_t* shape = args.k_cache.shape;
  if (shape[0] < batch_size(args)) {
    return fail(ANYNPU_BAD_SHAPE, "%s: k_cache.shape[0] must be at least B = %lld, got %lld", kOp,
                wide(batch_size(args)), wide(shape[0]));
  }
  if (shape[1] < sequence_length(args)) {
    return fail(ANYNPU_BAD_SHAPE, "%s: k_cache.shape[1] must be at least S = %lld, got %lld", kOp,
                wide(sequence_length(args)), wide(shape[1]));
  }
  return ANYNPU_OK;
}

int32_t check(const Args& args) {
  ANYNPU_TRY(check_caches(args));
  ANYNPU_TRY(check_x(args));
  ANYNPU_TRY(check_angle(args, "cos", args.cos));
  ANYNPU_TRY(check_angle(args, "sin", args.sin));
  ANYNPU_TRY(check_cache_room(args));
  ANYNPU_TRY(check_indices(args));
  ANYNPU_TRY(check_head_parameter(args, "scale_k", args.scale_k));
  ANYNPU_TRY(check_head_parameter(args, "scale_v", args.scale_v));
  if (present(args.offset_k)) ANYNPU_TRY(check_head_parameter(args, "offset_k", args.offset_k));
  if (present(args.offset_v)) ANYNPU_TRY(check_head_parameter(args, "offset_v", args.offset_v));
  ANYNPU_TRY(check_dequant(args));
  return check_outputs(args);
}

int32_t check_all_data(const Args& args) {
  const bool integers = args.x.dtype == ANYNPU_INT32;
  const struct {
    const char* name;
    const anynpu_tensor* tensor;
    bool used;
  } tensors[] = {
      {"x", &args.x, true},
      {"cos", &args.cos, true},
      {"sin", &args.sin, true},
      {"k_cache", &args.k_cache, true},
      {"v_cache", &args.v_cache, true},
      {"indices", &args.indices, true},
      {"scale_k", &args.scale_k, true},
      {"scale_v", &args.scale_v, true},
      {"offset_k", &args.offset_k, true},
      {"offset_v", &args.offset_v, true},
      {"weight_scale", &args.weight_scale, integers},
      {"activation_scale", &args.activation_scale, integers},
      {"bias", &args.bias, integers},
      {"q", &args.q, true},
      {"k", &args.k, true},
      {"v", &args.v, true},
  };
  for (const auto& entry : tensors) {
    if (entry.used) ANYNPU_TRY(check_data(kOp, entry.name, *entry.tensor));
  }
  const int64_t bytes = element_count(args.k_cache);
  const auto k = reinterpret_cast<uintptr_t>(args.k_cache.data), v = reinterpret_cast<uintptr_t>(args.v_cache.data);
  if (bytes > 0 && (k < v ? v - k : k - v) < static_cast<uintptr_t>(bytes)) {
    return fail(ANYNPU_BAD_VALUE, "%s: k_cache and v_cache must not share memory", kOp);
  }
  return ANYNPU_OK;
}

int32_t index_at(const anynpu_tensor& indices, int64_t position) {
  const auto* data = static_cast<const int32_t*>(indices.data);
  if (indices.ndim == 1) return data[position * indices.strides[0]];
  const int64_t columns = indices.shape[1];
  return data[position / columns * indices.strides[0] + position % columns * indices.strides[1]];
}

// Everything that can be wrong with the indices is found here, before anything is written.
int32_t check_index_values(const Args& args, bool* increasing) {
  const int64_t count = element_count(args.indices);
  const int64_t rows = args.k_cache.shape[1];
  const int64_t last = is_paged(args) ? args.k_cache.shape[0] * rows - 1 : rows - sequence_length(args);
  int64_t highest = -1;
  *increasing = true;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t index = index_at(args.indices, i);
    if (index > last || (index < 0 && !is_paged(args))) {
      return is_paged(args)
                 ? fail(ANYNPU_BAD_VALUE, "%s: indices must be below C1 * C2 = %lld * %lld = %lld, got %lld at [%lld]",
                        kOp, wide(args.k_cache.shape[0]), wide(rows), wide(last + 1), wide(index), wide(i))
                 : fail(ANYNPU_BAD_VALUE,
                        "%s: indices must be in [0, C2 - S] = [0, %lld - %lld] = [0, %lld], got %lld at [%lld]", kOp,
                        wide(rows), wide(sequence_length(args)), wide(last), wide(index), wide(i));
    }
    if (index < 0) continue;
    *increasing &= index > highest;
    highest = index;
  }
  return ANYNPU_OK;
}

// Paged tokens may share a slot, and the last of them wins whatever the threads do: the others are found beforehand.
class SlotOwners {
 public:
  static size_t bytes(int64_t tokens) { return table_size(tokens) * sizeof(int32_t) + tokens; }

  // memory: bytes(tokens), or null when every token owns its slot.
  SlotOwners(const Args& args, void* memory) {
    if (memory == nullptr) return;
    const int64_t tokens = token_count(args), size = table_size(tokens);
    auto* table = static_cast<int32_t*>(memory);
    auto* owns = reinterpret_cast<uint8_t*>(table + size);
    std::fill(table, table + size, -1);
    for (int64_t token = tokens - 1; token >= 0; --token) {
      const int32_t slot = index_at(args.indices, token);
      int64_t place = (static_cast<uint64_t>(slot) * 0x9e3779b97f4a7c15u >> 32) & (size - 1);
      while (table[place] != -1 && table[place] != slot) place = (place + 1) & (size - 1);
      owns[token] = slot >= 0 && table[place] == -1;
      if (owns[token]) table[place] = slot;
    }
    owns_ = owns;
  }
  bool owns(int64_t token) const { return owns_ == nullptr || owns_[token]; }

 private:
  static int64_t table_size(int64_t tokens) {
    int64_t size = 16;
    while (size < 2 * tokens) size *= 2;
    return size;
  }
  const uint8_t* owns_ = nullptr;
};

size_t workspace_size(const Args& args) { return is_paged(args) ? SlotOwners::bytes(token_count(args)) : 0; }

RopeParameter parameter(const anynpu_tensor& tensor) {
  if (!present(tensor)) return {nullptr, 0, 1};
  return {tensor.data, tensor.ndim == 2 ? tensor.strides[0] : 0, tensor.strides[tensor.ndim - 1]};
}

RopeInput input_kind(const Args& args) {
  if (args.x.dtype != ANYNPU_INT32) return kRopeSame;
  if (!present(args.bias)) return kRopeNoBias;
  switch (args.bias.dtype) {
    case ANYNPU_INT32: return kRopeBiasInt32;
    case ANYNPU_FLOAT32: return kRopeBiasFloat32;
    case ANYNPU_FLOAT16: return kRopeBiasFloat16;
    default: return kRopeBiasBFloat16;
  }
}

RopeFloat float_kind(int32_t dtype) {
  return dtype == ANYNPU_FLOAT32 ? kRopeFloat32 : dtype == ANYNPU_FLOAT16 ? kRopeFloat16 : kRopeBFloat16;
}

char* at(const anynpu_tensor& tensor, int64_t offset) {
  return present(tensor) ? static_cast<char*>(tensor.data) + offset * (dtype_bits(tensor.dtype) / 8) : nullptr;
}

class Run {
 public:
  explicit Run(const Args& args)
      : args_(args),
        length_(sequence_length(args)),
        layer_{args.size_splits[0] / head_size(args),
               kv_heads(args),
               head_size(args),
               args.x.strides[args.x.ndim - 1],
               args.cos.strides[args.cos.ndim - 1],
               args.sin.strides[args.sin.ndim - 1],
               {nullptr, 0, 1},
               {nullptr, 0, 1},
               parameter(args.scale_k),
               parameter(args.scale_v),
               parameter(args.offset_k),
               parameter(args.offset_v)} {
    if (args.x.dtype == ANYNPU_INT32) {
      layer_.weight_scale = parameter(args.weight_scale);
      layer_.bias = parameter(args.bias);
    }
    const int64_t strides[] = {
        layer_.x_stride,       layer_.cos_stride,     layer_.sin_stride,     layer_.weight_scale.stride,
        layer_.bias.stride,    layer_.scale_k.stride, layer_.scale_v.stride, layer_.offset_k.stride,
        layer_.offset_v.stride};
    const bool unit = std::all_of(std::begin(strides), std::end(strides), [](int64_t stride) { return stride == 1; });
    const RopeKernel& kernel = pick(kKernels);
    const bool dense = unit && layer_.head_size / 2 >= kernel.lanes;
    function_ = kernel.token[input_kind(args)][float_kind(args.cos.dtype)][dense];
  }

  void tokens(int64_t begin, int64_t end, const SlotOwners& owners) const {
    for (int64_t token = begin; token < end; ++token) {
      function_(layer_, describe(token, std::min(token + 1, end - 1), owners));
    }
  }

 private:
  int64_t cache_row(int64_t token, const SlotOwners& owners) const {
    if (is_paged(args_)) return owners.owns(token) ? index_at(args_.indices, token) : -1;
    const int64_t batch = token / length_;
    return batch * args_.k_cache.shape[1] + index_at(args_.indices, batch) + token % length_;
  }

  char* row(const anynpu_tensor& tensor, int64_t token) const {
    if (args_.x.ndim == 2) return at(tensor, token * tensor.strides[0]);
    return at(tensor, token / length_ * tensor.strides[0] + token % length_ * tensor.strides[1]);
  }

  RopeToken describe(int64_t token, int64_t next, const SlotOwners& owners) const {
    const int64_t kv_width = layer_.kv_heads * layer_.head_size;
    const int64_t cache_row = this->cache_row(token, owners);
    const bool scaled = args_.x.dtype == ANYNPU_INT32 && present(args_.activation_scale);
    RopeToken result{};
    result.x = row(args_.x, token);
    result.next_x = row(args_.x, next);
    result.cos = row(args_.cos, token);
    result.sin = row(args_.sin, token);
    result.activation_scale =
        scaled ? *reinterpret_cast<const float*>(at(args_.activation_scale, token * args_.activation_scale.strides[0]))
               : 1.0f;
    result.q = at(args_.q, token * layer_.q_heads * layer_.head_size);
    result.k = at(args_.k, token * kv_width);
    result.v = at(args_.v, token * kv_width);
    if (cache_row >= 0) {
      result.k_codes = static_cast<int8_t*>(args_.k_cache.data) + cache_row * kv_width;
      result.v_codes = static_cast<int8_t*>(args_.v_cache.data) + cache_row * kv_width;
    }
    return result;
  }

  const Args& args_;
  int64_t length_;
  RopeLayer layer_;
  RopeFunction function_;
};

int32_t run(const Args& args, void* workspace, size_t workspace_bytes) {
  bool increasing = true;
  ANYNPU_TRY(check_index_values(args, &increasing));
  const int64_t tokens = token_count(args);
  const int64_t grain = std::max<int64_t>(1, kGrain / row_width(args));
  void* memory = nullptr;
  if (is_paged(args) && !increasing && thread_count(tokens, grain) > 1) {
    const size_t bytes = workspace_size(args);
    memory = workspace != nullptr && workspace_bytes >= bytes ? workspace : scratch(ScratchSlot::main, bytes);
    if (memory == nullptr) return fail(ANYNPU_NO_MEMORY, "%s: no memory for %zu bytes of workspace", kOp, bytes);
  }
  const SlotOwners owners(args, memory);
  const Run run(args);
  parallel_for(tokens, grain, [&](int64_t begin, int64_t end) { run.tokens(begin, end, owners); });
  return ANYNPU_OK;
}

}  // namespace
}  // namespace anynpu

extern "C" int32_t anynpu_rope_kv_cache_check(const anynpu_rope_kv_cache_args* args, size_t* workspace_bytes) {
  if (args == nullptr || workspace_bytes == nullptr) {
    return anynpu::fail(ANYNPU_NULL_ARG, "rope_kv_cache: null argument");
  }
  *workspace_bytes = 0;
  ANYNPU_TRY(anynpu::check(*args));
  *workspace_bytes = anynpu::workspace_size(*args);
  return ANYNPU_OK;
}

extern "C" int32_t anynpu_rope_kv_cache(const anynpu_rope_kv_cache_args* args, void* workspace,
                                        size_t workspace_bytes) {
  size_t wanted = 0;
  ANYNPU_TRY(anynpu_rope_kv_cache_check(args, &wanted));
  ANYNPU_TRY(anynpu::check_all_data(*args));
  return anynpu::run(*args, workspace, workspace_bytes);
}
