// SPDX-License-Identifier: Apache-2.0
#include <cstring>

#include "acl/executor/executor.h"
#include "aclnnop/aclnn_dequant_rope_quant_kvcache.h"
#include "core/status.h"

namespace {

using anynpu::wide;
using Args = anynpu_rope_kv_cache_args;
using Stage = anynpu::acl::FirstStage<Args>;

constexpr auto kDequantRopeQuantKvcache =
    anynpu::acl::make_operator<Args, anynpu_rope_kv_cache_check, anynpu_rope_kv_cache>("aclnnDequantRopeQuantKvcache");

// A string argument that may be absent: one of the values that there are.
void require_text(Stage& stage, const char* name, const char* text, bool known, const char* expected) {
  stage.require(text == nullptr || known, "rope_kv_cache: %s must be %s, got '%s'", name, expected,
                text == nullptr ? "" : text);
}

bool is(const char* text, const char* value) { return text != nullptr && std::strcmp(text, value) == 0; }

// The document's limits of Atlas A2 that do not need the data, as src/anynpu/_strict.py states them for Python.
void limit(Stage& stage) {
  const anynpu_tensor &x = stage.args.x, &cache = stage.args.k_cache;
  if (!stage.ok() || x.ndim < 1 || cache.ndim < 1) return;
  const auto width = wide(x.shape[x.ndim - 1]);
  const auto batch = wide(x.shape[0]), planes = wide(cache.shape[0]);
  stage.limit(width <= 4096 && width % 64 == 0,
              "wants the last axis of x to be at most 4096 and a multiple of 64, got %lld", width);
  stage.limit(stage.args.cos.dtype != ANYNPU_FLOAT32, "wants cos in float16 or bfloat16, got float32");
  stage.limit(stage.args.cache_mode == ANYNPU_CACHE_PAGE || planes > batch,
              "wants kCacheRef.shape[0] > B = %lld in contiguous mode, got %lld", batch, planes);
  for (const anynpu_tensor* scale : {&stage.args.scale_k, &stage.args.scale_v}) {
    stage.limit(scale->ndim == 2, "wants 2-D scales, got %d axes", scale->ndim);
  }
}

}  // namespace

extern "C" aclnnStatus aclnnDequantRopeQuantKvcacheGetWorkspaceSize(
    const aclTensor* x, const aclTensor* cos, const aclTensor* sin, aclTensor* kCacheRef, aclTensor* vCacheRef,
    const aclTensor* indices, const aclTensor* scaleK, const aclTensor* scaleV, const aclTensor* offsetKOptional,
    const aclTensor* offsetVOptional, const aclTensor* weightScaleOptional, const aclTensor* activationScaleOptional,
    const aclTensor* biasOptional, const aclIntArray* sizeSplits, char* quantModeOptional, char* layoutOptional,
    bool kvOutput, char* cacheModeOptional, aclTensor* qOut, aclTensor* kOut, aclTensor* vOut, uint64_t* workspaceSize,
    aclOpExecutor** executor) {
  return anynpu::acl::first_stage<Args>(kDequantRopeQuantKvcache, workspaceSize, executor, [&](Stage& stage) {
    stage.input("x", x, &Args::x);
    stage.input("cos", cos, &Args::cos);
    stage.input("sin", sin, &Args::sin);
    stage.output("kCacheRef", kCacheRef, &Args::k_cache);
    stage.output("vCacheRef", vCacheRef, &Args::v_cache);
    stage.input("indices", indices, &Args::indices);
    stage.input("scaleK", scaleK, &Args::scale_k);
    stage.input("scaleV", scaleV, &Args::scale_v);
    stage.optional("offsetK", offsetKOptional, &Args::offset_k);
    stage.optional("offsetV", offsetVOptional, &Args::offset_v);
    stage.optional("weightScale", weightScaleOptional, &Args::weight_scale);
    stage.optional("activationScale", activationScaleOptional, &Args::activation_scale);
    stage.optional("bias", biasOptional, &Args::bias);
    stage.ints("sizeSplits", sizeSplits, stage.args.size_splits, 3);
    stage.output("qOut", qOut, &Args::q);
    if (kvOutput) {
      stage.output("kOut", kOut, &Args::k);
      stage.output("vOut", vOut, &Args::v);
    }
    const bool paged = is(cacheModeOptional, "page");
    require_text(stage, "quant_mode", quantModeOptional, is(quantModeOptional, "static"), "static");
    require_text(stage, "input_layout", layoutOptional, is(layoutOptional, "BSND"), "BSND");
    require_text(stage, "cache_mode", cacheModeOptional, paged || is(cacheModeOptional, "contiguous"),
                 "contiguous or page");
    stage.args.cache_mode = paged ? ANYNPU_CACHE_PAGE : ANYNPU_CACHE_CONTIGUOUS;
    limit(stage);
  });
}

ANYNPU_SECOND_STAGE(aclnnDequantRopeQuantKvcache, kDequantRopeQuantKvcache)
