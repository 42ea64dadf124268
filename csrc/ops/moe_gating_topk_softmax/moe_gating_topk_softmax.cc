// SPDX-License-Identifier: Apache-2.0
#include "ops/moe_gating_topk_softmax/moe_gating_topk_softmax.h"

#include <algorithm>

#include "core/carver.h"
#include "core/integer.h"
#include "core/parallel.h"
#include "core/scratch.h"
#include "core/tensor.h"
#include "gemm/gemm.h"
#include "simd/scalar.h"

namespace anynpu {

ANYNPU_KERNELS(GatingKernel, gating)

namespace {

constexpr const char* kOp = "moe_gating_topk_softmax";
constexpr int64_t kGrain = 1 << 11;  // logits a thread; below it a second thread costs more than it gives

struct Shape {
  int64_t rows, experts, chosen;
};

int32_t check_x(const anynpu_tensor& x, Shape* shape) {
  if (x.ndim != 2 && x.ndim != 3) {
    return fail(ANYNPU_BAD_SHAPE, "%s: The x should be 2D or 3D, got %dD", kOp, x.ndim);
  }
  if (!is_float(x.dtype)) {
    return fail(ANYNPU_BAD_DTYPE, "%s: float16, float32 or bfloat16 tensor expected but got a tensor with dtype: %s",
                kOp, dtype_name(x.dtype));
  }
  shape->experts = x.shape[x.ndim - 1];
  shape->rows = x.ndim == 2 ? x.shape[0] : x.shape[0] * x.shape[1];
  if (shape->experts > INT32_MAX) return fail(ANYNPU_BAD_SHAPE, "%s: x has too many experts for int32", kOp);
  return check_plain(kOp, "x", x);
}

int32_t check_finished(const anynpu_tensor& finished, const anynpu_tensor& x) {
  if (!present(finished)) return ANYNPU_OK;
  ANYNPU_TRY(check_dtype(kOp, "finished", finished, {ANYNPU_BOOL}));
  if (x.ndim != finished.ndim + 1) {
    return fail(ANYNPU_BAD_SHAPE, "%s: x dims shoud be largs finished dims than 1., got %d and %d", kOp, x.ndim,
                finished.ndim);
  }
  if (!std::equal(finished.shape, finished.shape + finished.ndim, x.shape)) {
    return fail(ANYNPU_BAD_SHAPE, "%s: Input rows shoud be same., got %s and %s", kOp, shape_text(x),
                shape_text(finished));
  }
  return check_plain(kOp, "finished", finished);
}

// An output of x's shape with `last` in place of the experts.
int32_t check_output(const char* name, const anynpu_tensor& tensor, int32_t dtype, const anynpu_tensor& x,
                     int64_t last) {
  ANYNPU_TRY(check_dtype(kOp, name, tensor, {dtype}));
  anynpu_tensor expected = x;
  expected.shape[x.ndim - 1] = last;
  ANYNPU_TRY(check_shape(kOp, name, tensor, expected));
  return check_plain(kOp, name, tensor);
}

int32_t check_outputs(const anynpu_moe_gating_topk_softmax_args& args, Shape* shape) {
  const anynpu_tensor &x = args.x, &y = args.y;
  const int64_t chosen = y.ndim == 0 ? 0 : y.shape[y.ndim - 1];
  if (chosen > shape->experts) {
    return fail(ANYNPU_BAD_SHAPE, "%s: The k should be in [0, E] = [0, %lld], got %lld", kOp, wide(shape->experts),
                wide(chosen));
  }
  shape->chosen = chosen;
  ANYNPU_TRY(check_output("y", y, x.dtype, x, chosen));
  ANYNPU_TRY(check_output("expert_idx", args.expert_idx, ANYNPU_INT32, x, chosen));
  if (present(args.row_idx)) {
    ANYNPU_TRY(check_output("row_idx", args.row_idx, ANYNPU_INT32, x, chosen));
    if (element_count(y) > INT32_MAX) return fail(ANYNPU_BAD_SHAPE, "%s: y has too many elements for int32", kOp);
  }
  if (!present(args.softmax)) return ANYNPU_OK;
  if (args.renorm != 0) return fail(ANYNPU_BAD_SHAPE, "%s: softmax must be absent with renorm 1", kOp);
  return check_output("softmax", args.softmax, ANYNPU_FLOAT32, x, shape->experts);
}

int32_t check(const anynpu_moe_gating_topk_softmax_args& args, Shape* shape) {
  ANYNPU_TRY(check_required(kOp, "x", args.x));
  ANYNPU_TRY(check_tensor(kOp, "finished", args.finished));
  ANYNPU_TRY(check_required(kOp, "y", args.y));
  ANYNPU_TRY(check_required(kOp, "expert_idx", args.expert_idx));
  ANYNPU_TRY(check_tensor(kOp, "row_idx", args.row_idx));
  ANYNPU_TRY(check_tensor(kOp, "softmax", args.softmax));
  if (args.renorm != 0 && args.renorm != 1) {
    return fail(ANYNPU_BAD_SHAPE, "%s: renorm must be 0 or 1, but got: %lld", kOp, wide(args.renorm));
  }
  ANYNPU_TRY(check_x(args.x, shape));
  ANYNPU_TRY(check_finished(args.finished, args.x));
  return check_outputs(args, shape);
}

class Gate {
 public:
  Gate(const anynpu_moe_gating_topk_softmax_args& args, const Shape& shape)
      : args_(args), shape_(shape), kernel_(gating_kernel()), bytes_(dtype_bits(args.x.dtype) / 8) {}

  int32_t run() const {
    if (shape_.rows == 0) return ANYNPU_OK;
    const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, shape_.experts));
    const int threads = thread_count(shape_.rows, grain);
    const int64_t own = Buffers(shape_, 0).size;
    const auto memory = reinterpret_cast<uintptr_t>(scratch(ScratchSlot::main, threads * own));
    if (memory == 0 && own > 0)
      return fail(ANYNPU_NO_MEMORY, "%s: no memory for %lld experts", kOp, wide(shape_.experts));
    parallel_for(shape_.rows, grain, [&](int64_t begin, int64_t end) {
      const Buffers buffers(shape_, memory + (threads == 1 ? 0 : omp_get_thread_num() * own));
      for (int64_t row = begin; row < end; ++row) one_row(row, buffers);
    });
    return ANYNPU_OK;
  }

 private:
  // Of one thread.
  struct Buffers {
    float *values, *picked;  // of all experts, and of the chosen ones
    int32_t *keys, *tops;
    int64_t size;  // bytes

    Buffers(const Shape& shape, uintptr_t memory) {
      Carver carver(memory);
      const int64_t experts = round_up(shape.experts, kGatingBlock);
      values = carver.take<float>(experts);
      picked = carver.take<float>(round_up(shape.chosen, kGatingBlock));
      keys = carver.take<int32_t>(experts);
      tops = carver.take<int32_t>(experts / kGatingBlock);
      size = carver.used();
    }
  };

  void one_row(int64_t row, const Buffers& own) const {
    const int64_t experts = shape_.experts, chosen = shape_.chosen, first = row * chosen;
    const auto* x = static_cast<const uint8_t*>(args_.x.data) + row * experts * bytes_;
    auto* index = static_cast<int32_t*>(args_.expert_idx.data) + first;
    gemm_kernel().load_floats(x, args_.x.dtype, 1, experts, own.values);
    if (args_.renorm == 0) make_probabilities(row, own.values);
    kernel_.choose(own.values, experts, chosen, own.keys, own.tops, index);
    for (int64_t j = 0; j < chosen; ++j) own.picked[j] = own.values[index[j]];
    if (args_.renorm == 1) kernel_.softmax(own.picked, chosen);
    for (int64_t j = 0; j < chosen; ++j) write(first + j, own.picked[j]);
    if (is_finished(row)) std::fill_n(index, chosen, static_cast<int32_t>(experts));
    if (!present(args_.row_idx)) return;
    auto* places = static_cast<int32_t*>(args_.row_idx.data) + first;
    for (int64_t j = 0; j < chosen; ++j) places[j] = static_cast<int32_t>(j * shape_.rows + row);
  }

  // float16 probabilities are rounded before they are compared.
  void make_probabilities(int64_t row, float* values) const {
    kernel_.softmax(values, shape_.experts);
    if (present(args_.softmax)) {
      std::copy_n(values, shape_.experts, static_cast<float*>(args_.softmax.data) + row * shape_.experts);
    }
    if (args_.x.dtype == ANYNPU_FLOAT16) kernel_.round_to_half(values, shape_.experts);
  }

  bool is_finished(int64_t row) const {
    return present(args_.finished) && static_cast<const uint8_t*>(args_.finished.data)[row] != 0;
  }

  void write(int64_t at, float value) const {
    if (args_.y.dtype == ANYNPU_FLOAT32) {
      static_cast<float*>(args_.y.data)[at] = value;
    } else {
      static_cast<uint16_t*>(args_.y.data)[at] =
          args_.y.dtype == ANYNPU_FLOAT16 ? half_from_float(value) : bf16_from_float(value);
    }
  }

  const anynpu_moe_gating_topk_softmax_args& args_;
  const Shape& shape_;
  const GatingKernel& kernel_;
  const int64_t bytes_;  // of a logit
};

}  // namespace

const GatingKernel& gating_kernel() { return pick(kKernels); }

}  // namespace anynpu

using anynpu::check_data;
using anynpu::fail;

extern "C" int32_t anynpu_moe_gating_topk_softmax_check(const anynpu_moe_gating_topk_softmax_args* args,
                                                        size_t* workspace_bytes) {
  if (args == nullptr || workspace_bytes == nullptr)
    return fail(ANYNPU_NULL_ARG, "moe_gating_topk_softmax: null argument");
  *workspace_bytes = 0;
  anynpu::Shape shape;
  return anynpu::check(*args, &shape);
}

extern "C" int32_t anynpu_moe_gating_topk_softmax(const anynpu_moe_gating_topk_softmax_args* args, void*, size_t) {
  if (args == nullptr) return fail(ANYNPU_NULL_ARG, "moe_gating_topk_softmax: null argument");
  anynpu::Shape shape;
  ANYNPU_TRY(anynpu::check(*args, &shape));
  ANYNPU_TRY(check_data("moe_gating_topk_softmax", "x", args->x));
  ANYNPU_TRY(check_data("moe_gating_topk_softmax", "finished", args->finished));
  ANYNPU_TRY(check_data("moe_gating_topk_softmax", "y", args->y));
  ANYNPU_TRY(check_data("moe_gating_topk_softmax", "expert_idx", args->expert_idx));
  ANYNPU_TRY(check_data("moe_gating_topk_softmax", "row_idx", args->row_idx));
  ANYNPU_TRY(check_data("moe_gating_topk_softmax", "softmax", args->softmax));
  return anynpu::Gate(*args, shape).run();
}
