// SPDX-License-Identifier: Apache-2.0
#include <cstring>

#include "acl/executor/executor.h"
#include "aclnnop/aclnn_dequant_rope_quant_kvcache.h"
#include "core/tensor.h"

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

// Longer tensors than needed are taken outside of strict mode.
void limit_size(Stage& stage, const char* name, const anynpu_tensor& tensor, int64_t count) {
  if (!anynpu::present(tensor)) return;
  const int64_t elements = anynpu::element_count(tensor);
  stage.limit(elements == count, "wants %lld elements of %s, got %lld", wide(count), name, wide(elements));
}

// The document's limits that do not need the data, as src/anynpu/_strict.py states them for Python.
void limit(Stage& stage) {
  const Args& args = stage.args;
  const anynpu_tensor &x = args.x, &cache = args.k_cache;
  stage.limit_to("Atlas A2");
  if (!stage.ok() || x.ndim < 2 || x.ndim > 3 || cache.ndim < 1) return;
  const int64_t width = x.shape[x.ndim - 1], batch = x.shape[0], planes = cache.shape[0];
  stage.limit(width <= 4096 && width % 64 == 0,
              "wants the last axis of x to be at most 4096 and a multiple of 64, got %lld", wide(width));
  stage.limit(args.cos.dtype != ANYNPU_FLOAT32, "wants cos in float16 or bfloat16, got float32");
  stage.limit(args.cache_mode == ANYNPU_CACHE_PAGE || planes > batch,
              "wants kCacheRef.shape[0] > B = %lld in contiguous mode, got %lld", wide(batch), wide(planes));
  for (const anynpu_tensor* each : {&args.scale_k, &args.scale_v, &args.offset_k, &args.offset_v}) {
    stage.limit(!anynpu::present(*each) || each->ndim == 2, "wants 2-D scales and offsets, got %d axes", each->ndim);
  }
  if (x.dtype != ANYNPU_INT32) return;
  limit_size(stage, "activationScale", args.activation_scale, x.ndim == 3 ? batch * x.shape[1] : batch);
  limit_size(stage, "bias", args.bias, width);
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
