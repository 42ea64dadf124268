// SPDX-License-Identifier: Apache-2.0
// Rotary position embeddings of float tensors, by products and sums of the halves of a head: in float32, rounded once.
#include <cstring>
#include <memory>

#include "acl/executor/executor.h"
#include "acl/executor/tensor.h"
#include "aclnnop/aclnn_apply_rotary_pos_emb.h"
#include "aclnnop/aclnn_apply_rotary_pos_emb_v2.h"
#include "aclnnop/aclnn_rotary_position_embedding.h"
#include "core/tensor.h"

namespace {

using anynpu::wide;
using anynpu::acl::Views;

enum Mode : int32_t { kHalf = 0, kInterleave = 1 };

struct One {
  anynpu_tensor x, cos, sin, y;
  int32_t mode;
};
struct Both {
  anynpu_tensor query, key, cos, sin;
  int32_t mode;
};

// Half of the values of each head: those that turn into themselves, or their partners.
anynpu_tensor half(anynpu_tensor tensor, int32_t mode, bool second) {
  const int last = tensor.ndim - 1;
  const int64_t bytes = tensor.strides[last] * (anynpu::dtype_bits(tensor.dtype) / 8);
  tensor.shape[last] /= 2;
  const int64_t step = mode == kHalf ? tensor.shape[last] : 1;
  if (second) tensor.data = anynpu::acl::advanced(tensor.data, step * bytes);
  if (mode == kInterleave) tensor.strides[last] *= 2;
  return tensor;
}

int32_t multiply(const anynpu_tensor& x1, const anynpu_tensor& x2, const anynpu_tensor& y) {
  const anynpu_float_elementwise_args args{x1, x2, y, ANYNPU_FLOAT_MULTIPLY, 1};
  return anynpu_float_elementwise(&args, nullptr, 0);
}

int32_t add(const anynpu_tensor& x1, const anynpu_tensor& x2, float alpha, const anynpu_tensor& y) {
  const anynpu_float_elementwise_args args{x1, x2, y, ANYNPU_FLOAT_ADD, alpha};
  return anynpu_float_elementwise(&args, nullptr, 0);
}

int32_t check_one(const One* args, size_t* workspace_bytes) {
  for (const anynpu_tensor* angles : {&args->cos, &args->sin}) {
    const anynpu_float_elementwise_args product{args->x, *angles, args->y, ANYNPU_FLOAT_MULTIPLY, 1};
    if (const int32_t status = anynpu_float_elementwise_check(&product, workspace_bytes)) return status;
    if (args->x.ndim != args->y.ndim || std::memcmp(args->x.shape, args->y.shape, sizeof(args->x.shape)) != 0 ||
        args->x.ndim == 0 || angles->ndim != args->x.ndim ||
        angles->shape[angles->ndim - 1] != args->x.shape[args->x.ndim - 1]) {
      return anynpu::fail(
          ANYNPU_BAD_SHAPE,
          "x and the result must have one shape, cos and sin its axes and its last one, got %s, %s and %s",
          anynpu::shape_text(args->x), anynpu::shape_text(args->y), anynpu::shape_text(*angles));
    }
  }
  const int64_t size = args->x.shape[args->x.ndim - 1];
  if (size % 2 == 0) return ANYNPU_OK;
  return anynpu::fail(ANYNPU_BAD_SHAPE, "the last axis of x must be even, got %lld", wide(size));
}

int32_t run_one(const One* args, void*, size_t) {
  if (anynpu::element_count(args->x) == 0) return ANYNPU_OK;
  anynpu_tensor x[2], cos[2], sin[2], y[2];
  for (int i = 0; i < 2; ++i) {
    x[i] = half(args->x, args->mode, i == 1);
    cos[i] = half(args->cos, args->mode, i == 1);
    sin[i] = half(args->sin, args->mode, i == 1);
    y[i] = half(args->y, args->mode, i == 1);
  }
  anynpu_tensor products[4];
  const int64_t count = anynpu::element_count(x[0]);
  const std::unique_ptr<float[]> memory(new float[4 * count]);
  for (int i = 0; i < 4; ++i) {
    products[i] = x[0];
    products[i].dtype = ANYNPU_FLOAT32;
    products[i].data = memory.get() + i * count;
    anynpu::make_contiguous(products[i]);
  }
  // All products before the sums, which may be written over x.
  for (int i = 0; i < 2; ++i) {
    if (const int32_t status = multiply(x[i], cos[i], products[2 * i])) return status;
    if (const int32_t status = multiply(x[1 - i], sin[i], products[2 * i + 1])) return status;
  }
  if (const int32_t status = add(products[0], products[1], -1, y[0])) return status;
  return add(products[2], products[3], 1, y[1]);
}

One query_of(const Both& args) { return {args.query, args.cos, args.sin, args.query, args.mode}; }
One key_of(const Both& args) { return {args.key, args.cos, args.sin, args.key, args.mode}; }

int32_t check_both(const Both* args, size_t* workspace_bytes) {
  const One query = query_of(*args), key = key_of(*args);
  if (const int32_t status = check_one(&query, workspace_bytes)) return status;
  return check_one(&key, workspace_bytes);
}

int32_t run_both(const Both* args, void*, size_t) {
  const One query = query_of(*args), key = key_of(*args);
  if (const int32_t status = run_one(&query, nullptr, 0)) return status;
  return run_one(&key, nullptr, 0);
}

constexpr auto kEmbedding =
    anynpu::acl::make_operator<One, check_one, run_one>("aclnnRotaryPositionEmbedding", Views::in_place);
constexpr auto kApply = anynpu::acl::make_operator<Both, check_both, run_both>("aclnnApplyRotaryPosEmb");
constexpr auto kApplyV2 = anynpu::acl::make_operator<Both, check_both, run_both>("aclnnApplyRotaryPosEmbV2");

void take(anynpu::acl::FirstStage<Both>& stage, aclTensor* query, aclTensor* key, const aclTensor* cos,
          const aclTensor* sin, int64_t layout) {
  stage.output("queryRef", query, &Both::query);
  stage.output("keyRef", key, &Both::key);
  stage.input("cos", cos, &Both::cos);
  stage.input("sin", sin, &Both::sin);
  stage.require(layout >= 1 && layout <= 4, "layout must be 1 (BSND), 2 (SBND), 3 (BNSD) or 4 (TND), got %lld",
                wide(layout));
  const int axes = layout == 4 ? 3 : 4;
  stage.require(stage.args.query.ndim == axes && stage.args.key.ndim == axes,
                "queryRef and keyRef must have %d axes in layout %lld, got %d and %d", axes, wide(layout),
                stage.args.query.ndim, stage.args.key.ndim);
}

}  // namespace

extern "C" aclnnStatus aclnnRotaryPositionEmbeddingGetWorkspaceSize(const aclTensor* x, const aclTensor* cos,
                                                                    const aclTensor* sin, int64_t mode, aclTensor* out,
                                                                    uint64_t* workspaceSize, aclOpExecutor** executor) {
  return anynpu::acl::first_stage<One>(kEmbedding, workspaceSize, executor, [&](auto& stage) {
    stage.input("x", x, &One::x);
    stage.input("cos", cos, &One::cos);
    stage.input("sin", sin, &One::sin);
    stage.output("out", out, &One::y);
    stage.require(mode == kHalf || mode == kInterleave,
                  "mode must be 0 (half) or 1 (interleave), others are not implemented, got %lld", wide(mode));
    stage.args.mode = static_cast<int32_t>(mode);
  });
}

extern "C" aclnnStatus aclnnApplyRotaryPosEmbGetWorkspaceSize(aclTensor* queryRef, aclTensor* keyRef,
                                                              const aclTensor* cos, const aclTensor* sin,
                                                              int64_t layout, uint64_t* workspaceSize,
                                                              aclOpExecutor** executor) {
  return anynpu::acl::first_stage<Both>(kApply, workspaceSize, executor,
                                        [&](auto& stage) { take(stage, queryRef, keyRef, cos, sin, layout); });
}

extern "C" aclnnStatus aclnnApplyRotaryPosEmbV2GetWorkspaceSize(aclTensor* queryRef, aclTensor* keyRef,
                                                                const aclTensor* cos, const aclTensor* sin,
                                                                int64_t layout, char* rotaryMode,
                                                                uint64_t* workspaceSize, aclOpExecutor** executor) {
  return anynpu::acl::first_stage<Both>(kApplyV2, workspaceSize, executor, [&](auto& stage) {
    take(stage, queryRef, keyRef, cos, sin, layout);
    const char* mode = rotaryMode == nullptr ? "half" : rotaryMode;
    const bool in_pairs = std::strcmp(mode, "interleave") == 0;
    stage.require(in_pairs || std::strcmp(mode, "half") == 0,
                  "rotaryMode must be half or interleave, others are not implemented, got '%s'", mode);
    stage.args.mode = in_pairs ? kInterleave : kHalf;
  });
}

ANYNPU_SECOND_STAGE(aclnnRotaryPositionEmbedding, kEmbedding)

ANYNPU_SECOND_STAGE(aclnnApplyRotaryPosEmb, kApply)

ANYNPU_SECOND_STAGE(aclnnApplyRotaryPosEmbV2, kApplyV2)
