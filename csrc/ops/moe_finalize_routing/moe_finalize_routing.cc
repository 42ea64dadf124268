// SPDX-License-Identifier: Apache-2.0
#include "ops/moe_finalize_routing/moe_finalize_routing.h"

#include <algorithm>

#include "core/parallel.h"
#include "core/scratch.h"
#include "core/tensor.h"
#include "simd/scalar.h"

namespace anynpu {

ANYNPU_KERNELS(MoeFinalizeRoutingKernel, moe_finalize_routing)

namespace {

constexpr const char* kOp = "moe_finalize_routing";
constexpr int64_t kGrain = 1 << 14;  // values a thread; below it a second thread costs more than it gives
constexpr int64_t kTile = 2048;      // columns of a task, so that two threads can share one token

struct Shape {
  int64_t rows, tokens, chosen, width;
};

int32_t check_floats(const char* name, const anynpu_tensor& tensor) {
  return check_dtype(kOp, name, tensor, {ANYNPU_FLOAT32, ANYNPU_FLOAT16, ANYNPU_BFLOAT16});
}

// `rows` -1: any number.
int32_t check_matrix(const char* name, const anynpu_tensor& tensor, int64_t rows, int64_t columns) {
  if (tensor.ndim == 2 && (rows < 0 || tensor.shape[0] == rows) && tensor.shape[1] == columns) {
    return check_plain(kOp, name, tensor);
  }
  if (rows < 0) {
    return fail(ANYNPU_BAD_SHAPE, "%s: %s must have shape (E, %lld), got %s", kOp, name, wide(columns),
                shape_text(tensor));
  }
  return fail(ANYNPU_BAD_SHAPE, "%s: %s must have shape (%lld, %lld), got %s", kOp, name, wide(rows), wide(columns),
              shape_text(tensor));
}

int32_t check_rows(const anynpu_tensor& rows, Shape* shape) {
  ANYNPU_TRY(check_floats("expanded_rows", rows));
  if (rows.ndim != 2 && rows.ndim != 3) {
    return fail(ANYNPU_BAD_SHAPE, "%s: expanded_rows must have shape (rows, H) or (E, C, H), got %d axes", kOp,
                rows.ndim);
  }
  shape->width = rows.shape[rows.ndim - 1];
  shape->rows = rows.ndim == 2 ? rows.shape[0] : rows.shape[0] * rows.shape[1];
  return check_plain(kOp, "expanded_rows", rows);
}

// Tokens and choices of each: from the scales, or from y.
int32_t check_slots(const anynpu_moe_finalize_routing_args& args, Shape* shape) {
  const anynpu_tensor &index = args.row_idx, &scales = args.scales;
  ANYNPU_TRY(check_dtype(kOp, "row_idx", index, {ANYNPU_INT32}));
  if (index.ndim != 1) {
    return fail(ANYNPU_BAD_SHAPE, "%s: row_idx must have shape (N K,), got %s", kOp, shape_text(index));
  }
  ANYNPU_TRY(check_plain(kOp, "row_idx", index));
  const int64_t slots = index.shape[0];
  if (present(scales)) {
    ANYNPU_TRY(check_floats("scales", scales));
    if (scales.ndim != 2) {
      return fail(ANYNPU_BAD_SHAPE, "%s: scales must have shape (N, K), got %s", kOp, shape_text(scales));
    }
    ANYNPU_TRY(check_plain(kOp, "scales", scales));
    shape->tokens = scales.shape[0];
    shape->chosen = scales.shape[1];
  } else {
    if (args.y.ndim != 2) {
      return fail(ANYNPU_BAD_SHAPE, "%s: y must have shape (N, H), got %s", kOp, shape_text(args.y));
    }
    shape->tokens = args.y.shape[0];
    shape->chosen = shape->tokens == 0 ? 0 : slots / shape->tokens;
  }
  if (slots == shape->tokens * shape->chosen) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE, "%s: row_idx must have N * K = %lld * %lld elements, got %lld", kOp,
              wide(shape->tokens), wide(shape->chosen), wide(slots));
}

int32_t check_addends(const anynpu_moe_finalize_routing_args& args, const Shape& shape) {
  const struct {
    const char* name;
    const anynpu_tensor& tensor;
    int64_t rows;
  } addends[] = {{"skip1", args.skip1, shape.tokens}, {"skip2", args.skip2, shape.tokens}, {"bias", args.bias, -1}};
  for (const auto& each : addends) {
    if (!present(each.tensor)) continue;
    ANYNPU_TRY(check_dtype(kOp, each.name, each.tensor, {args.expanded_rows.dtype}));
    ANYNPU_TRY(check_matrix(each.name, each.tensor, each.rows, shape.width));
  }
  const anynpu_tensor& experts = args.expert_idx;
  if (present(args.bias) && !present(experts)) {
    return fail(ANYNPU_BAD_SHAPE, "%s: bias needs the experts of each token", kOp);
  }
  if (!present(experts)) return ANYNPU_OK;
  ANYNPU_TRY(check_dtype(kOp, "expert_idx", experts, {ANYNPU_INT32}));
  return check_matrix("expert_idx", experts, shape.tokens, shape.chosen);
}

int32_t check(const anynpu_moe_finalize_routing_args& args, Shape* shape) {
  ANYNPU_TRY(check_required(kOp, "expanded_rows", args.expanded_rows));
  ANYNPU_TRY(check_tensor(kOp, "skip1", args.skip1));
  ANYNPU_TRY(check_tensor(kOp, "skip2", args.skip2));
  ANYNPU_TRY(check_tensor(kOp, "bias", args.bias));
  ANYNPU_TRY(check_tensor(kOp, "scales", args.scales));
  ANYNPU_TRY(check_required(kOp, "row_idx", args.row_idx));
  ANYNPU_TRY(check_tensor(kOp, "expert_idx", args.expert_idx));
  ANYNPU_TRY(check_required(kOp, "y", args.y));
  if (args.drop_pad_mode < 0 || args.drop_pad_mode > 3) {
    return fail(ANYNPU_BAD_SHAPE, "%s: drop_pad_mode must be 0, 1, 2 or 3, got %lld", kOp, wide(args.drop_pad_mode));
  }
  ANYNPU_TRY(check_rows(args.expanded_rows, shape));
  ANYNPU_TRY(check_slots(args, shape));
  ANYNPU_TRY(check_addends(args, *shape));
  ANYNPU_TRY(check_dtype(kOp, "y", args.y, {args.expanded_rows.dtype}));
  return check_matrix("y", args.y, shape->tokens, shape->width);
}

// The sentence's name of the values, and that all of them are in [low, high].
int32_t check_values(const char* name, const anynpu_tensor& tensor, int64_t low, int64_t high) {
  const auto* values = static_cast<const int32_t*>(tensor.data);
  const int64_t count = element_count(tensor);
  if (count == 0) return ANYNPU_OK;
  int32_t least = values[0], most = values[0];
  for (int64_t i = 1; i < count; ++i) {
    least = std::min(least, values[i]);
    most = std::max(most, values[i]);
  }
  if (least >= low && most <= high) return ANYNPU_OK;
  return fail(ANYNPU_BAD_VALUE, "%s: %s must be in [%lld, %lld], got %d", kOp, name, wide(low), wide(high),
              least < low ? least : most);
}

class Combination {
 public:
  Combination(const anynpu_moe_finalize_routing_args& args, const Shape& shape)
      : args_(args), shape_(shape), kernel_(pick(kKernels)), bytes_(dtype_bits(args.expanded_rows.dtype) / 8) {}

  int32_t run() const {
    ANYNPU_TRY(check_values("row_idx", args_.row_idx, -1, shape_.rows - 1));
    if (present(args_.bias)) ANYNPU_TRY(check_values("experts", args_.expert_idx, 0, args_.bias.shape[0] - 1));
    const int64_t tiles = (shape_.width + kTile - 1) / kTile, tasks = shape_.tokens * tiles;
    if (tasks == 0) return ANYNPU_OK;
    const int64_t own = shape_.chosen + 2;  // terms of a token
    const int64_t grain = std::max<int64_t>(1, kGrain / (std::min(kTile, std::max<int64_t>(1, shape_.width)) * own));
    const int threads = thread_count(tasks, grain);
    auto* terms = static_cast<RoutedTerm*>(scratch(ScratchSlot::main, threads * own * sizeof(RoutedTerm)));
    if (terms == nullptr) return fail(ANYNPU_NO_MEMORY, "%s: no memory for %lld choices", kOp, wide(shape_.chosen));
    parallel_for(tasks, grain, [&](int64_t begin, int64_t end) {
      RoutedTerm* mine = terms + (threads == 1 ? 0 : omp_get_thread_num() * own);
      for (int64_t task = begin; task < end; ++task) add(task / tiles, task % tiles * kTile, mine);
    });
    return ANYNPU_OK;
  }

 private:
  // Column `at` of a row of a matrix as wide as y.
  uint8_t* place(const anynpu_tensor& matrix, int64_t row, int64_t at) const {
    return static_cast<uint8_t*>(matrix.data) + (row * shape_.width + at) * bytes_;
  }

  float scale_of(int64_t slot) const {
    const anynpu_tensor& scales = args_.scales;
    if (!present(scales)) return 1.0f;
    if (scales.dtype == ANYNPU_FLOAT32) return static_cast<const float*>(scales.data)[slot];
    const uint16_t bits = static_cast<const uint16_t*>(scales.data)[slot];
    return scales.dtype == ANYNPU_FLOAT16 ? float_from_half(bits) : float_from_bf16(bits);
  }

  RoutedTerm choice(int64_t token, int64_t j, int64_t at) const {
    const int64_t slot = token * shape_.chosen + j;
    const int64_t place_of_row = args_.drop_pad_mode < 2 ? j * shape_.tokens + token : slot;
    const int32_t row = static_cast<const int32_t*>(args_.row_idx.data)[place_of_row];
    RoutedTerm term = {row < 0 ? nullptr : place(args_.expanded_rows, row, at), nullptr, scale_of(slot)};
    if (present(args_.bias)) {
      term.bias = place(args_.bias, static_cast<const int32_t*>(args_.expert_idx.data)[slot], at);
    }
    return term;
  }

  // Columns of a token from `at` on, a tile of them.
  void add(int64_t token, int64_t at, RoutedTerm* terms) const {
    int64_t count = 0;
    for (const anynpu_tensor* skip : {&args_.skip1, &args_.skip2}) {
      if (present(*skip)) terms[count++] = {place(*skip, token, at), nullptr, 1.0f};
    }
    for (int64_t j = 0; j < shape_.chosen; ++j) terms[count++] = choice(token, j, at);
    kernel_.add(args_.y.dtype, terms, count, std::min(kTile, shape_.width - at), place(args_.y, token, at));
  }

  const anynpu_moe_finalize_routing_args& args_;
  const Shape& shape_;
  const MoeFinalizeRoutingKernel& kernel_;
  const int64_t bytes_;  // of a value
};

}  // namespace
}  // namespace anynpu

using anynpu::check_data;
using anynpu::fail;

extern "C" int32_t anynpu_moe_finalize_routing_check(const anynpu_moe_finalize_routing_args* args,
                                                     size_t* workspace_bytes) {
  if (args == nullptr || workspace_bytes == nullptr)
    return fail(ANYNPU_NULL_ARG, "moe_finalize_routing: null argument");
  *workspace_bytes = 0;
  anynpu::Shape shape;
  return anynpu::check(*args, &shape);
}

extern "C" int32_t anynpu_moe_finalize_routing(const anynpu_moe_finalize_routing_args* args, void*, size_t) {
  if (args == nullptr) return fail(ANYNPU_NULL_ARG, "moe_finalize_routing: null argument");
  anynpu::Shape shape;
  ANYNPU_TRY(anynpu::check(*args, &shape));
  ANYNPU_TRY(check_data("moe_finalize_routing", "expanded_rows", args->expanded_rows));
  ANYNPU_TRY(check_data("moe_finalize_routing", "skip1", args->skip1));
  ANYNPU_TRY(check_data("moe_finalize_routing", "skip2", args->skip2));
  ANYNPU_TRY(check_data("moe_finalize_routing", "bias", args->bias));
  ANYNPU_TRY(check_data("moe_finalize_routing", "scales", args->scales));
  ANYNPU_TRY(check_data("moe_finalize_routing", "row_idx", args->row_idx));
  ANYNPU_TRY(check_data("moe_finalize_routing", "expert_idx", args->expert_idx));
  ANYNPU_TRY(check_data("moe_finalize_routing", "y", args->y));
  return anynpu::Combination(*args, shape).run();
}
