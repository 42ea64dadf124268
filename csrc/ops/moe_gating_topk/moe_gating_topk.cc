// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <limits>

#include "core/carver.h"
#include "core/integer.h"
#include "core/parallel.h"
#include "core/scratch.h"
#include "core/tensor.h"
#include "gemm/gemm.h"
#include "ops/moe_gating_topk_softmax/moe_gating_topk_softmax.h"

namespace anynpu {
namespace {

constexpr const char* kOp = "moe_gating_topk";
constexpr int64_t kGrain = 1 << 13;  // logits a thread; below it a second thread costs more than it gives
constexpr int32_t kSoftmax = 0, kSigmoid = 1, kTwoLargest = 1;
constexpr float kNever = -std::numeric_limits<float>::infinity();
using Args = anynpu_moe_gating_topk_args;

struct Shape {
  int64_t rows, experts, chosen;
};

int32_t check_layout(const char* name, const anynpu_tensor& tensor, int32_t dtype,
                     std::initializer_list<int64_t> shape) {
  ANYNPU_TRY(check_required(kOp, name, tensor));
  ANYNPU_TRY(check_dtype(kOp, name, tensor, {dtype}));
  ANYNPU_TRY(check_plain(kOp, name, tensor));
  anynpu_tensor expected = tensor;
  expected.ndim = static_cast<int32_t>(shape.size());
  std::copy(shape.begin(), shape.end(), expected.shape);
  return check_shape(kOp, name, tensor, expected);
}

int32_t check_attributes(const Args& args, const Shape& shape) {
  const int64_t groups = args.group_count, kept = args.k_group;
  if (args.norm_type != kSoftmax && args.norm_type != kSigmoid) {
    return fail(ANYNPU_UNSUPPORTED, "%s: norm_type must be 0 (softmax) or 1 (sigmoid), got %d", kOp, args.norm_type);
  }
  if (args.group_select_mode != 0 && args.group_select_mode != kTwoLargest) {
    return fail(ANYNPU_BAD_SHAPE, "%s: group_select_mode must be 0 or 1, got %d", kOp, args.group_select_mode);
  }
  if (groups < 1 || shape.experts % groups != 0) {
    return fail(ANYNPU_BAD_SHAPE, "%s: group_count must divide the number of experts, %lld, got %lld", kOp,
                wide(shape.experts), wide(groups));
  }
  if (kept < 1 || kept > groups) {
    return fail(ANYNPU_BAD_SHAPE, "%s: k_group must be in [1, group_count] = [1, %lld], got %lld", kOp, wide(groups),
                wide(kept));
  }
  const int64_t size = shape.experts / groups;
  if (args.group_select_mode == kTwoLargest && size < 2) {
    return fail(ANYNPU_BAD_SHAPE, "%s: group_select_mode 1 needs groups of two experts or more, got %lld", kOp,
                wide(size));
  }
  if (shape.chosen >= 1 && shape.chosen <= size * kept) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE, "%s: k must be in [1, E / group_count * k_group] = [1, %lld], got %lld", kOp,
              wide(size * kept), wide(shape.chosen));
}

int32_t check_bias(const anynpu_tensor& x, const anynpu_tensor& bias) {
  if (!present(bias)) return ANYNPU_OK;
  ANYNPU_TRY(check_tensor(kOp, "bias", bias));
  if (bias.dtype != x.dtype) {
    return fail(ANYNPU_BAD_DTYPE, "%s: The dtype of x and bias should be same, got %s and %s", kOp, dtype_name(x.dtype),
                dtype_name(bias.dtype));
  }
  if (bias.ndim != 1) return fail(ANYNPU_BAD_SHAPE, "%s: The bias should be 1D, got %dD", kOp, bias.ndim);
  if (bias.shape[0] != x.shape[1]) {
    return fail(ANYNPU_BAD_SHAPE, "%s: The bias first dim should be same as x second dim, got %lld and %lld", kOp,
                wide(bias.shape[0]), wide(x.shape[1]));
  }
  return check_layout("bias", bias, x.dtype, {x.shape[1]});
}

int32_t check(const Args& args, Shape* shape) {
  const anynpu_tensor &x = args.x, &y = args.y;
  ANYNPU_TRY(check_required(kOp, "x", x));
  ANYNPU_TRY(check_required(kOp, "y", y));
  ANYNPU_TRY(check_dtype(kOp, "x", x, {ANYNPU_FLOAT16, ANYNPU_FLOAT32, ANYNPU_BFLOAT16}));
  if (x.ndim != 2) return fail(ANYNPU_BAD_SHAPE, "%s: The x should be 2D, got %dD", kOp, x.ndim);
  *shape = {x.shape[0], x.shape[1], y.ndim == 2 ? y.shape[1] : 0};
  if (shape->experts > INT32_MAX) return fail(ANYNPU_BAD_SHAPE, "%s: x has too many experts for int32", kOp);
  ANYNPU_TRY(check_attributes(args, *shape));
  ANYNPU_TRY(check_layout("x", x, x.dtype, {shape->rows, shape->experts}));
  ANYNPU_TRY(check_bias(x, args.bias));
  ANYNPU_TRY(check_layout("y", y, x.dtype, {shape->rows, shape->chosen}));
  ANYNPU_TRY(check_layout("expert_idx", args.expert_idx, ANYNPU_INT32, {shape->rows, shape->chosen}));
  if (!present(args.scores)) return ANYNPU_OK;
  return check_layout("scores", args.scores, ANYNPU_FLOAT32, {shape->rows, shape->experts});
}

class Gate {
 public:
  Gate(const Args& args, const Shape& shape)
      : args_(args), shape_(shape), kernel_(gating_kernel()), bytes_(dtype_bits(args.x.dtype) / 8) {}

  int32_t run() const {
    const int threads = thread_count(shape_.rows, std::max<int64_t>(1, kGrain / shape_.experts));
    const int64_t own = Buffers(*this, 0).size, of_bias = padded(shape_.experts) * static_cast<int64_t>(sizeof(float));
    void* memory = scratch(ScratchSlot::main, of_bias + threads * own);
    if (memory == nullptr) return fail(ANYNPU_NO_MEMORY, "%s: no memory for %lld experts", kOp, wide(shape_.experts));
    auto* bias = static_cast<float*>(memory);
    if (present(args_.bias)) load(args_.bias.data, bias);
    parallel_for(threads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t thread = begin; thread < end; ++thread) {
        const Buffers buffers(*this, reinterpret_cast<uintptr_t>(memory) + of_bias + thread * own);
        const int64_t last = shape_.rows * (thread + 1) / threads;
        for (int64_t row = shape_.rows * thread / threads; row < last; ++row) one_row(row, bias, buffers);
      }
    });
    return ANYNPU_OK;
  }

 private:
  static int64_t padded(int64_t count) { return round_up(count, kGatingBlock); }

  // Of one thread.
  struct Buffers {
    float *scores, *choice, *worth, *picked;  // of experts, twice, of groups, and of the chosen ones
    int32_t *keys, *tops, *groups;
    int64_t size;  // bytes

    Buffers(const Gate& gate, uintptr_t memory) {
      Carver carver(memory);
      const int64_t experts = padded(gate.shape_.experts), groups_count = padded(gate.args_.group_count);
      scores = carver.take<float>(experts);
      choice = carver.take<float>(experts);
      worth = carver.take<float>(groups_count);
      picked = carver.take<float>(padded(gate.shape_.chosen));
      keys = carver.take<int32_t>(experts);
      tops = carver.take<int32_t>(experts / kGatingBlock);
      groups = carver.take<int32_t>(groups_count);
      size = carver.used();
    }
  };

  void load(const void* from, float* to) const {
    gemm_kernel().load_floats(from, args_.x.dtype, 1, shape_.experts, to);
  }

  void one_row(int64_t row, const float* bias, const Buffers& own) const {
    const int64_t experts = shape_.experts, chosen = shape_.chosen;
    auto* index = static_cast<int32_t*>(args_.expert_idx.data) + row * chosen;
    load(static_cast<const uint8_t*>(args_.x.data) + row * experts * bytes_, own.scores);
    args_.norm_type == kSoftmax ? kernel_.softmax(own.scores, experts) : kernel_.sigmoid(own.scores, experts);
    if (present(args_.scores)) {
      std::copy_n(own.scores, experts, static_cast<float*>(args_.scores.data) + row * experts);
    }
    std::copy_n(own.scores, experts, own.choice);
    if (present(args_.bias)) {
      for (int64_t i = 0; i < experts; ++i) own.choice[i] += bias[i];
    }
    if (args_.k_group < args_.group_count) leave_best_groups(own);
    kernel_.choose(own.choice, experts, chosen, own.keys, own.tops, index);
    float sum = 0, factor = args_.routed_scaling_factor;
    for (int64_t j = 0; j < chosen; ++j) sum += own.picked[j] = own.scores[index[j]];
    if (args_.norm_type == kSigmoid) {
      for (int64_t j = 0; j < chosen; ++j) own.picked[j] /= sum + args_.eps;
    }
    for (int64_t j = 0; j < chosen; ++j) own.picked[j] *= factor;
    write(own.picked, row * chosen);
  }

  // What a group is worth: its largest choice, or the sum of the two largest; NaN where it has one.
  float worth(const float* choice, int64_t size) const {
    float first = kNever, second = kNever;
    for (int64_t i = 0; i < size; ++i) {
      if (std::isnan(choice[i])) return choice[i];
      second = std::max(second, std::min(first, choice[i]));
      first = std::max(first, choice[i]);
    }
    return args_.group_select_mode == kTwoLargest ? first + second : first;
  }

  void leave_best_groups(const Buffers& own) const {
    const int64_t groups = args_.group_count, kept = args_.k_group, size = shape_.experts / groups;
    for (int64_t group = 0; group < groups; ++group) own.worth[group] = worth(own.choice + group * size, size);
    kernel_.choose(own.worth, groups, kept, own.keys, own.tops, own.groups);
    std::sort(own.groups, own.groups + kept);
    const int32_t* next = own.groups;
    for (int64_t group = 0; group < groups; ++group) {
      if (next < own.groups + kept && *next == group) {
        ++next;
      } else {
        std::fill_n(own.choice + group * size, size, kNever);
      }
    }
  }

  void write(const float* values, int64_t first) const {
    const anynpu_tensor from{const_cast<float*>(values), ANYNPU_FLOAT32, ANYNPU_ND, 1, 0, {shape_.chosen}, {1}};
    anynpu_tensor to{
        static_cast<uint8_t*>(args_.y.data) + first * bytes_, args_.y.dtype, ANYNPU_ND, 1, 0, {shape_.chosen}, {1}};
    const anynpu_cast_args cast{from, to};
    anynpu_cast(&cast, nullptr, 0);
  }

  const Args& args_;
  const Shape& shape_;
  const GatingKernel& kernel_;
  const int64_t bytes_;  // of a logit
};

}  // namespace
}  // namespace anynpu

using anynpu::check_data;
using anynpu::fail;

extern "C" int32_t anynpu_moe_gating_topk_check(const anynpu_moe_gating_topk_args* args, size_t* workspace_bytes) {
  if (args == nullptr || workspace_bytes == nullptr) return fail(ANYNPU_NULL_ARG, "moe_gating_topk: null argument");
  *workspace_bytes = 0;
  anynpu::Shape shape;
  return anynpu::check(*args, &shape);
}

extern "C" int32_t anynpu_moe_gating_topk(const anynpu_moe_gating_topk_args* args, void*, size_t) {
  if (args == nullptr) return fail(ANYNPU_NULL_ARG, "moe_gating_topk: null argument");
  anynpu::Shape shape;
  ANYNPU_TRY(anynpu::check(*args, &shape));
  ANYNPU_TRY(check_data("moe_gating_topk", "x", args->x));
  ANYNPU_TRY(check_data("moe_gating_topk", "bias", args->bias));
  ANYNPU_TRY(check_data("moe_gating_topk", "y", args->y));
  ANYNPU_TRY(check_data("moe_gating_topk", "expert_idx", args->expert_idx));
  ANYNPU_TRY(check_data("moe_gating_topk", "scores", args->scores));
  return anynpu::Gate(*args, shape).run();
}
