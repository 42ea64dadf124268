// SPDX-License-Identifier: Apache-2.0
// A counting sort of the slots by expert, then rows of x copied or quantised in that order.
#include <algorithm>
#include <memory>
#include <new>

#include "core/parallel.h"
#include "core/tensor.h"
#include "gemm/gemm.h"
#include "ops/dynamic_quant/dynamic_quant.h"
#include "ops/quantize/quantize.h"

namespace anynpu {
namespace {

constexpr const char* kOp = "moe_init_routing";
constexpr int64_t kGrain = 1 << 14;  // values a thread; below it a second thread costs more than it gives
constexpr int64_t kTile = 1024;      // values converted at once
static_assert(kTile % kQuantizeBlock == 0);
// Experts of which no output has a value each: a wrong number must not take the machine's memory.
constexpr int64_t kMostUncounted = 1 << 20;

enum TokensType : int32_t { kRunningSums = 0, kCounts = 1, kPairs = 2 };
enum QuantMode : int32_t { kNone = -1, kStatic = 0, kDynamic = 1 };

struct Shape {
  int64_t tokens, width, chosen, experts, rows;
  int64_t slots() const { return tokens * chosen; }
};

int32_t check_inputs(const anynpu_moe_init_routing_args& args, Shape* shape) {
  const anynpu_tensor &x = args.x, &ids = args.expert_idx;
  ANYNPU_TRY(args.quant_mode == kNone
                 ? check_dtype(kOp, "x", x, {ANYNPU_FLOAT32, ANYNPU_FLOAT16, ANYNPU_BFLOAT16, ANYNPU_INT8})
                 : check_dtype(kOp, "x", x, {ANYNPU_FLOAT32, ANYNPU_FLOAT16, ANYNPU_BFLOAT16}));
  ANYNPU_TRY(check_dtype(kOp, "expert_idx", ids, {ANYNPU_INT32}));
  if (x.ndim != 2)
    return fail(ANYNPU_BAD_SHAPE, "%s: The x should be 2-Dimension, current is %d-Dimension.", kOp, x.ndim);
  if (ids.ndim != 2) {
    return fail(ANYNPU_BAD_SHAPE, "%s: The expert_idx should be 2-Dimension, current is %d-Dimension.", kOp, ids.ndim);
  }
  if (x.shape[0] != ids.shape[0]) {
    return fail(ANYNPU_BAD_SHAPE, "%s: the first dim of expert_idx and x should be the same, got %lld and %lld", kOp,
                wide(ids.shape[0]), wide(x.shape[0]));
  }
  ANYNPU_TRY(check_plain(kOp, "x", x));
  ANYNPU_TRY(check_plain(kOp, "expert_idx", ids));
  shape->tokens = x.shape[0];
  shape->width = x.shape[1];
  shape->chosen = ids.shape[1];
  if (shape->slots() > INT32_MAX) return fail(ANYNPU_BAD_SHAPE, "%s: expert_idx has too many elements for int32", kOp);
  return ANYNPU_OK;
}

int32_t check_attributes(const anynpu_moe_init_routing_args& args, Shape* shape) {
  if (args.drop_pad_mode != 0 && args.drop_pad_mode != 1) {
    return fail(ANYNPU_BAD_SHAPE, "%s: drop_pad_mode must be in [0, 1], got %d", kOp, args.drop_pad_mode);
  }
  if (args.expert_tokens_num_type < kRunningSums || args.expert_tokens_num_type > kPairs) {
    return fail(ANYNPU_BAD_SHAPE, "%s: expert_tokens_num_type must be in [0, 1, 2], got %d", kOp,
                args.expert_tokens_num_type);
  }
  if (args.row_idx_type != 0 && args.row_idx_type != 1) {
    return fail(ANYNPU_BAD_SHAPE, "%s: row_idx_type must be in [0, 1], got %d", kOp, args.row_idx_type);
  }
  if (args.quant_mode < kNone || args.quant_mode > kDynamic) {
    return fail(ANYNPU_UNSUPPORTED, "%s: quant_mode must be -1, 0 or 1 here, got %d", kOp, args.quant_mode);
  }
  const int64_t first = args.first_expert, last = args.last_expert;
  if (args.expert_num < 1 || args.expert_num > INT32_MAX) {
    return fail(ANYNPU_BAD_SHAPE, "%s: expert_num must be at least 1 and less than 2^31, got %lld", kOp,
                wide(args.expert_num));
  }
  if (first < 0 || first >= last || last > args.expert_num) {
    return fail(ANYNPU_BAD_SHAPE,
                "%s: active_expert_range must increase within [0, expert_num] = [0, %lld], got [%lld, %lld]", kOp,
                wide(args.expert_num), wide(first), wide(last));
  }
  shape->experts = last - first;
  if (args.drop_pad_mode == 0) return ANYNPU_OK;
  if (shape->experts != args.expert_num || args.row_idx_type != 0 || args.expert_tokens_num_type == kPairs) {
    return fail(ANYNPU_BAD_SHAPE,
                "%s: drop_pad_mode 1 wants all experts, row_idx_type 0 and expert_tokens_num_type 0 or 1", kOp);
  }
  return ANYNPU_OK;
}

int32_t check_scale(const anynpu_moe_init_routing_args& args, const Shape& shape) {
  const anynpu_tensor &scale = args.scale, &offset = args.offset;
  ANYNPU_TRY(check_dtype(kOp, "scale", scale, {ANYNPU_FLOAT32}));
  if (present(scale)) ANYNPU_TRY(check_plain(kOp, "scale", scale));
  if (args.quant_mode == kStatic) {
    ANYNPU_TRY(check_required(kOp, "scale", scale));
    ANYNPU_TRY(check_required(kOp, "offset", offset));
    ANYNPU_TRY(check_dtype(kOp, "offset", offset, {ANYNPU_FLOAT32}));
    ANYNPU_TRY(check_plain(kOp, "offset", offset));
    if (scale.ndim != 1 || scale.shape[0] != 1 || offset.ndim != 1 || offset.shape[0] != 1) {
      return fail(ANYNPU_BAD_SHAPE, "%s: the shape of scale should be 1, and that of offset, got %s and %s", kOp,
                  shape_text(scale), shape_text(offset));
    }
    return ANYNPU_OK;
  }
  if (present(offset)) return fail(ANYNPU_BAD_SHAPE, "%s: offset must be absent unless quant_mode is 0", kOp);
  if (!present(scale)) return ANYNPU_OK;
  if (args.quant_mode == kNone) {
    if (scale.ndim == 1 && scale.shape[0] == shape.tokens) return ANYNPU_OK;
    return fail(ANYNPU_BAD_SHAPE, "%s: the scale shape support only 1D (bs,) = (%lld,) in no quant mode, got %s", kOp,
                wide(shape.tokens), shape_text(scale));
  }
  if (scale.ndim == 2 && (scale.shape[0] == shape.experts || scale.shape[0] == 1) && scale.shape[1] == shape.width) {
    return ANYNPU_OK;
  }
  return fail(ANYNPU_BAD_SHAPE,
              "%s: the first dim of scale must be in [expert_range_length, 1] = [%lld, 1] and the second %lld, got %s",
              kOp, wide(shape.experts), wide(shape.width), shape_text(scale));
}

int32_t check_tokens(const anynpu_moe_init_routing_args& args, const Shape& shape) {
  const anynpu_tensor& tokens = args.expert_tokens;
  if (!present(tokens)) {
    if (shape.experts <= kMostUncounted) return ANYNPU_OK;
    return fail(ANYNPU_BAD_SHAPE, "%s: expert_num must be at most %lld without expert_tokens, got %lld", kOp,
                wide(kMostUncounted), wide(shape.experts));
  }
  ANYNPU_TRY(check_dtype(kOp, "expert_tokens", tokens, {ANYNPU_INT32, ANYNPU_INT64}));
  ANYNPU_TRY(check_plain(kOp, "expert_tokens", tokens));
  const bool counted = args.expert_tokens_num_type == kPairs
                           ? tokens.ndim == 2 && tokens.shape[0] == args.expert_num && tokens.shape[1] == 2
                           : tokens.ndim == 1 && tokens.shape[0] == shape.experts;
  if (counted) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE, "%s: expert_tokens has a wrong shape, %s", kOp, shape_text(tokens));
}

int32_t check_outputs(const anynpu_moe_init_routing_args& args, Shape* shape) {
  const anynpu_tensor &y = args.expanded_x, &index = args.expanded_row_idx, &scale = args.expanded_scale;
  ANYNPU_TRY(check_dtype(kOp, "expanded_x", y, {args.quant_mode == kNone ? args.x.dtype : int32_t{ANYNPU_INT8}}));
  ANYNPU_TRY(check_dtype(kOp, "expanded_row_idx", index, {ANYNPU_INT32}));
  ANYNPU_TRY(check_plain(kOp, "expanded_x", y));
  ANYNPU_TRY(check_plain(kOp, "expanded_row_idx", index));
  const bool padded = args.drop_pad_mode == 1;
  const bool fits = padded ? y.ndim == 3 && y.shape[0] == args.expert_num && y.shape[2] == shape->width
                           : y.ndim == 2 && y.shape[0] <= shape->slots() && y.shape[1] == shape->width;
  if (!fits) {
    return fail(ANYNPU_BAD_SHAPE, "%s: expanded_x must have shape (R, H) or, padded, (expert_num, C, H), got %s", kOp,
                shape_text(y));
  }
  shape->rows = padded ? y.shape[0] * y.shape[1] : y.shape[0];
  if (shape->rows > INT32_MAX) return fail(ANYNPU_BAD_SHAPE, "%s: expanded_x has too many rows for int32", kOp);
  if (index.ndim != 1 || index.shape[0] != shape->slots()) {
    return fail(ANYNPU_BAD_SHAPE, "%s: expanded_row_idx must have shape (N K,), got %s", kOp, shape_text(index));
  }
  ANYNPU_TRY(check_tokens(args, *shape));
  if (!present(scale)) return ANYNPU_OK;
  ANYNPU_TRY(check_dtype(kOp, "expanded_scale", scale, {ANYNPU_FLOAT32}));
  ANYNPU_TRY(check_plain(kOp, "expanded_scale", scale));
  if (scale.ndim == 1 && scale.shape[0] == shape->rows) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE, "%s: expanded_scale must have a value for each row of expanded_x, got %s", kOp,
              shape_text(scale));
}

int32_t check(const anynpu_moe_init_routing_args& args, Shape* shape) {
  ANYNPU_TRY(check_required(kOp, "x", args.x));
  ANYNPU_TRY(check_required(kOp, "expert_idx", args.expert_idx));
  ANYNPU_TRY(check_tensor(kOp, "scale", args.scale));
  ANYNPU_TRY(check_required(kOp, "expanded_x", args.expanded_x));
  ANYNPU_TRY(check_required(kOp, "expanded_row_idx", args.expanded_row_idx));
  ANYNPU_TRY(check_tensor(kOp, "expert_tokens", args.expert_tokens));
  ANYNPU_TRY(check_tensor(kOp, "expanded_scale", args.expanded_scale));
  ANYNPU_TRY(check_attributes(args, shape));
  ANYNPU_TRY(check_inputs(args, shape));
  ANYNPU_TRY(check_scale(args, *shape));
  return check_outputs(args, shape);
}

template <typename T>
using Buffer = std::unique_ptr<T[]>;

class Routing {
 public:
  Routing(const anynpu_moe_init_routing_args& args, const Shape& shape)
      : args_(args), shape_(shape), ids_(static_cast<const int32_t*>(args.expert_idx.data)) {}

  int32_t run() {
    ends_.reset(new (std::nothrow) int64_t[shape_.experts + 1]());
    order_.reset(new (std::nothrow) int32_t[shape_.slots()]);
    rows_.reset(new (std::nothrow) int32_t[shape_.slots()]);
    if (!ends_ || !order_ || !rows_)
      return fail(ANYNPU_NO_MEMORY, "%s: no memory for %lld slots", kOp, wide(shape_.slots()));
    count();
    if (present(args_.expert_tokens)) {
      args_.expert_tokens.dtype == ANYNPU_INT64 ? write_tokens<int64_t>() : write_tokens<int32_t>();
    }
    sort();
    args_.drop_pad_mode == 1 ? place_padded() : place();
    parallel_for(shape_.tokens, rows_a_thread(shape_.chosen), [&](int64_t begin, int64_t end) {
      for (int64_t token = begin; token < end; ++token) copy_token(token);
    });
    return ANYNPU_OK;
  }

 private:
  bool routed(int32_t id) const { return id >= args_.first_expert && id < args_.last_expert; }

  // ends_[e]: where the slots of expert first + e begin; after sort(), where they end.
  void count() {
    for (int64_t f = 0; f < shape_.slots(); ++f) {
      if (routed(ids_[f])) ++ends_[ids_[f] - args_.first_expert + 1];
    }
    for (int64_t e = 0; e < shape_.experts; ++e) ends_[e + 1] += ends_[e];
    routed_ = ends_[shape_.experts];
  }

  template <typename T>
  void write_tokens() const {
    auto* tokens = static_cast<T*>(args_.expert_tokens.data);
    const bool sums = args_.expert_tokens_num_type == kRunningSums && args_.drop_pad_mode == 0;
    if (args_.expert_tokens_num_type == kPairs) std::fill_n(tokens, 2 * args_.expert_num, T{0});
    for (int64_t e = 0; e < shape_.experts; ++e) {
      const int64_t own = ends_[e + 1] - ends_[e];
      if (args_.expert_tokens_num_type != kPairs) {
        tokens[e] = static_cast<T>(sums ? ends_[e + 1] : own);
      } else if (own > 0) {
        *tokens++ = static_cast<T>(args_.first_expert + e);
        *tokens++ = static_cast<T>(own);
      }
    }
  }

  void sort() {
    int32_t* rest = order_.get() + routed_;
    for (int32_t f = 0; f < shape_.slots(); ++f) {
      if (routed(ids_[f])) {
        order_[ends_[ids_[f] - args_.first_expert]++] = f;
      } else {
        *rest++ = f;
      }
    }
    if (args_.row_idx_type == 0) return;
    const auto key = [this](int32_t f) { return ids_[f] < args_.first_expert ? INT32_MAX : ids_[f]; };
    // A slot is its own tie break, so that no stable sort, which may allocate, is needed.
    std::sort(order_.get() + routed_, rest,
              [&](int32_t a, int32_t b) { return key(a) != key(b) ? key(a) < key(b) : a < b; });
  }

  void place() {
    auto* index = static_cast<int32_t*>(args_.expanded_row_idx.data);
    std::fill_n(rows_.get(), shape_.slots(), -1);
    for (int64_t i = 0; i < routed_; ++i) rows_[order_[i]] = static_cast<int32_t>(i);
    std::copy_n(args_.row_idx_type == 1 ? order_.get() : rows_.get(), shape_.slots(), index);
    for (int64_t i = shape_.rows; i < routed_; ++i) rows_[order_[i]] = -1;
    clear_rows(std::min(routed_, shape_.rows), shape_.rows);
  }

  void place_padded() {
    const int64_t capacity = args_.expanded_x.shape[1];
    std::fill_n(rows_.get(), shape_.slots(), -1);
    for (int64_t e = 0, at = 0; e < shape_.experts; at = ends_[e++]) {
      const int64_t kept = std::min(capacity, ends_[e] - at);
      for (int64_t i = 0; i < kept; ++i) rows_[order_[at + i]] = static_cast<int32_t>(e * capacity + i);
      clear_rows(e * capacity + kept, (e + 1) * capacity);
    }
    std::copy_n(rows_.get(), shape_.slots(), static_cast<int32_t*>(args_.expanded_row_idx.data));
  }

  // So that a thread has some work.
  int64_t rows_a_thread(int64_t rows_a_step) const {
    const int64_t rows = kGrain / std::max<int64_t>(1, shape_.width) / std::max<int64_t>(1, rows_a_step);
    return std::max<int64_t>(1, rows);
  }

  int64_t row_bytes() const { return shape_.width * dtype_bits(args_.expanded_x.dtype) / 8; }
  uint8_t* row_of_x(int64_t row) const { return static_cast<uint8_t*>(args_.expanded_x.data) + row * row_bytes(); }
  float scale_of_row(int64_t row) const {
    return present(args_.expanded_scale) ? static_cast<const float*>(args_.expanded_scale.data)[row] : 0.0f;
  }
  void set_scales(int64_t row, int64_t count, float scale) const {
    if (present(args_.expanded_scale)) std::fill_n(static_cast<float*>(args_.expanded_scale.data) + row, count, scale);
  }

  void clear_rows(int64_t first, int64_t last) const {
    parallel_for(last - first, rows_a_thread(1), [&](int64_t begin, int64_t end) {
      std::fill_n(row_of_x(first + begin), (end - begin) * row_bytes(), uint8_t{0});
      set_scales(first + begin, end - begin, 0.0f);
    });
  }

  // The rows of a token are alike unless each expert has smooth scales of its own.
  void copy_token(int64_t token) const {
    const bool alike = args_.quant_mode != kDynamic || !present(args_.scale) || args_.scale.shape[0] == 1;
    int64_t made = -1;
    for (int64_t slot = token * shape_.chosen; slot < (token + 1) * shape_.chosen; ++slot) {
      const int64_t row = rows_[slot];
      if (row < 0) continue;
      if (made >= 0 && alike) {
        std::copy_n(row_of_x(made), row_bytes(), row_of_x(row));
        set_scales(row, 1, scale_of_row(made));
      } else {
        set_scales(row, 1, make_row(token, ids_[slot], row_of_x(row)));
        made = row;
      }
    }
  }

  // Writes the row of a token for an expert and returns its scale.
  float make_row(int64_t token, int32_t id, uint8_t* y) const {
    const auto* x = static_cast<const uint8_t*>(args_.x.data) + token * shape_.width * dtype_bits(args_.x.dtype) / 8;
    if (args_.quant_mode == kDynamic) return quantize_dynamically(x, smooth_scales(id), reinterpret_cast<int8_t*>(y));
    if (args_.quant_mode == kStatic) {
      quantize(x, reinterpret_cast<int8_t*>(y));
      return 0.0f;
    }
    std::copy_n(x, row_bytes(), y);
    return present(args_.scale) ? static_cast<const float*>(args_.scale.data)[token] : 0.0f;
  }

  void quantize(const uint8_t* x, int8_t* y) const {
    float values[kTile], scales[kTile];
    double offsets[kTile];
    std::fill_n(scales, kTile, *static_cast<const float*>(args_.scale.data));
    std::fill_n(offsets, kTile, double{*static_cast<const float*>(args_.offset.data)});
    for (int64_t at = 0; at < shape_.width; at += kTile) {
      const int64_t count = std::min(kTile, shape_.width - at);
      std::fill(values + count, values + (count + kQuantizeBlock - 1) / kQuantizeBlock * kQuantizeBlock, 0.0f);
      load(x, nullptr, at, count, values);
      quantize_kernel().multiply_int8(values, scales, offsets, count, y + at);
    }
  }

  const float* smooth_scales(int32_t id) const {
    if (!present(args_.scale)) return nullptr;
    const int64_t row = args_.scale.shape[0] == 1 ? 0 : id - args_.first_expert;
    return static_cast<const float*>(args_.scale.data) + row * shape_.width;
  }

  float quantize_dynamically(const uint8_t* x, const float* smooth, int8_t* y) const {
    const DynamicQuantKernel& kernel = dynamic_quant_kernel();
    float values[kTile], most = 0.0f;
    for (int64_t at = 0; at < shape_.width; at += kTile) {
      const int64_t count = std::min(kTile, shape_.width - at);
      load(x, smooth, at, count, values);
      most = std::max(most, kernel.largest(values, count));
    }
    const float scale = most / 127.0f;
    for (int64_t at = 0; at < shape_.width; at += kTile) {
      const int64_t count = std::min(kTile, shape_.width - at);
      load(x, smooth, at, count, values);
      kernel.quantize(values, &scale, false, count, y + at);
    }
    return scale;
  }

  void load(const uint8_t* x, const float* smooth, int64_t at, int64_t count, float* to) const {
    gemm_kernel().load_floats(x + at * dtype_bits(args_.x.dtype) / 8, args_.x.dtype, 1, count, to);
    if (smooth != nullptr) dynamic_quant_kernel().multiply(to, smooth + at, count);
  }

  const anynpu_moe_init_routing_args& args_;
  const Shape& shape_;
  const int32_t* ids_;
  int64_t routed_ = 0;  // slots of experts in the range
  Buffer<int64_t> ends_;
  Buffer<int32_t> order_;
  Buffer<int32_t> rows_;  // the row of expanded_x that each slot's token goes to, or -1
};

}  // namespace
}  // namespace anynpu

using anynpu::check_data;
using anynpu::fail;

extern "C" int32_t anynpu_moe_init_routing_check(const anynpu_moe_init_routing_args* args, size_t* workspace_bytes) {
  if (args == nullptr || workspace_bytes == nullptr) return fail(ANYNPU_NULL_ARG, "moe_init_routing: null argument");
  *workspace_bytes = 0;
  anynpu::Shape shape;
  return anynpu::check(*args, &shape);
}

extern "C" int32_t anynpu_moe_init_routing(const anynpu_moe_init_routing_args* args, void*, size_t) {
  if (args == nullptr) return fail(ANYNPU_NULL_ARG, "moe_init_routing: null argument");
  anynpu::Shape shape;
  ANYNPU_TRY(anynpu::check(*args, &shape));
  ANYNPU_TRY(check_data("moe_init_routing", "x", args->x));
  ANYNPU_TRY(check_data("moe_init_routing", "expert_idx", args->expert_idx));
  ANYNPU_TRY(check_data("moe_init_routing", "scale", args->scale));
  ANYNPU_TRY(check_data("moe_init_routing", "offset", args->offset));
  ANYNPU_TRY(check_data("moe_init_routing", "expanded_x", args->expanded_x));
  ANYNPU_TRY(check_data("moe_init_routing", "expanded_row_idx", args->expanded_row_idx));
  ANYNPU_TRY(check_data("moe_init_routing", "expert_tokens", args->expert_tokens));
  ANYNPU_TRY(check_data("moe_init_routing", "expanded_scale", args->expanded_scale));
  return anynpu::Routing(*args, shape).run();
}
