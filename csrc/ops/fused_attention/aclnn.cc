// SPDX-License-Identifier: Apache-2.0
#include "aclnnop/aclnn_fused_infer_attention_score.h"
#include "aclnnop/aclnn_fused_infer_attention_score_v2.h"
#include "aclnnop/aclnn_fused_infer_attention_score_v3.h"
#include "aclnnop/aclnn_incre_flash_attention.h"
#include "aclnnop/aclnn_incre_flash_attention_v2.h"
#include "aclnnop/aclnn_incre_flash_attention_v3.h"
#include "aclnnop/aclnn_incre_flash_attention_v4.h"
#include "aclnnop/aclnn_prompt_flash_attention_v2.h"
#include "aclnnop/aclnn_prompt_flash_attention_v3.h"
#include "ops/fused_attention/aclnn_attention.h"

namespace {

using anynpu::attention::fused;
using anynpu::attention::increment;
using anynpu::attention::prompt;

constexpr anynpu::acl::Operator version(const char* name) {
  using namespace anynpu::attention;
  return anynpu::acl::make_operator<Args, check, run>(name);
}

constexpr auto kIncre = version("aclnnIncreFlashAttention");
constexpr auto kIncreV2 = version("aclnnIncreFlashAttentionV2");
constexpr auto kIncreV3 = version("aclnnIncreFlashAttentionV3");
constexpr auto kIncreV4 = version("aclnnIncreFlashAttentionV4");
constexpr auto kFused = version("aclnnFusedInferAttentionScore");
constexpr auto kFusedV2 = version("aclnnFusedInferAttentionScoreV2");
constexpr auto kFusedV3 = version("aclnnFusedInferAttentionScoreV3");
constexpr auto kPromptV2 = version("aclnnPromptFlashAttentionV2");
constexpr auto kPromptV3 = version("aclnnPromptFlashAttentionV3");

}  // namespace

extern "C" aclnnStatus aclnnIncreFlashAttentionGetWorkspaceSize(const aclTensor* query, const aclTensorList* key,
                                                                const aclTensorList* value, const aclTensor* pseShift,
                                                                const aclTensor* attenMask,
                                                                const aclIntArray* actualSeqLengths, int64_t numHeads,
                                                                double scaleValue, char* inputLayout,
                                                                int64_t numKeyValueHeads, const aclTensor* attentionOut,
                                                                uint64_t* workspaceSize, aclOpExecutor** executor) {
  return increment(kIncre,
                   {query, key, value, pseShift, attenMask, actualSeqLengths, numHeads, scaleValue, inputLayout,
                    numKeyValueHeads, attentionOut},
                   workspaceSize, executor);
}

ANYNPU_SECOND_STAGE(aclnnIncreFlashAttention, kIncre)

extern "C" aclnnStatus aclnnIncreFlashAttentionV2GetWorkspaceSize(
    const aclTensor* query, const aclTensorList* key, const aclTensorList* value, const aclTensor* pseShift,
    const aclTensor* attenMask, const aclIntArray* actualSeqLengths, const aclTensor* dequantScale1,
    const aclTensor* quantScale1, const aclTensor* dequantScale2, const aclTensor* quantScale2,
    const aclTensor* quantOffset2, int64_t numHeads, double scaleValue, char* inputLayout, int64_t numKeyValueHeads,
    const aclTensor* attentionOut, uint64_t* workspaceSize, aclOpExecutor** executor) {
  return increment(
      kIncreV2,
      {query, key, value, pseShift, attenMask, actualSeqLengths, numHeads, scaleValue, inputLayout, numKeyValueHeads,
       attentionOut, dequantScale1, quantScale1, dequantScale2, quantScale2, quantOffset2},
      workspaceSize, executor);
}

ANYNPU_SECOND_STAGE(aclnnIncreFlashAttentionV2, kIncreV2)

extern "C" aclnnStatus aclnnIncreFlashAttentionV3GetWorkspaceSize(
    const aclTensor* query, const aclTensorList* key, const aclTensorList* value, const aclTensor* pseShift,
    const aclTensor* attenMask, const aclIntArray* actualSeqLengths, const aclTensor* dequantScale1,
    const aclTensor* quantScale1, const aclTensor* dequantScale2, const aclTensor* quantScale2,
    const aclTensor* quantOffset2, const aclTensor* antiquantScale, const aclTensor* antiquantOffset,
    const aclTensor* blocktable, int64_t numHeads, double scaleValue, char* inputLayout, int64_t numKeyValueHeads,
    int64_t blockSize, int64_t, const aclTensor* attentionOut, uint64_t* workspaceSize, aclOpExecutor** executor) {
  return increment(kIncreV3,
                   {query,       key,           value,       pseShift,         attenMask,      actualSeqLengths,
                    numHeads,    scaleValue,    inputLayout, numKeyValueHeads, attentionOut,   dequantScale1,
                    quantScale1, dequantScale2, quantScale2, quantOffset2,     antiquantScale, antiquantOffset,
                    blocktable,  blockSize},
                   workspaceSize, executor);
}

ANYNPU_SECOND_STAGE(aclnnIncreFlashAttentionV3, kIncreV3)

extern "C" aclnnStatus aclnnIncreFlashAttentionV4GetWorkspaceSize(
    const aclTensor* query, const aclTensorList* key, const aclTensorList* value, const aclTensor* pseShift,
    const aclTensor* attenMask, const aclIntArray* actualSeqLengths, const aclTensor* dequantScale1,
    const aclTensor* quantScale1, const aclTensor* dequantScale2, const aclTensor* quantScale2,
    const aclTensor* quantOffset2, const aclTensor* antiquantScale, const aclTensor* antiquantOffset,
    const aclTensor* blocktable, const aclTensor* kvPaddingSize, int64_t numHeads, double scaleValue, char* inputLayout,
    int64_t numKeyValueHeads, int64_t blockSize, int64_t, const aclTensor* attentionOut, uint64_t* workspaceSize,
    aclOpExecutor** executor) {
  return increment(kIncreV4,
                   {query,       key,           value,        pseShift,         attenMask,      actualSeqLengths,
                    numHeads,    scaleValue,    inputLayout,  numKeyValueHeads, attentionOut,   dequantScale1,
                    quantScale1, dequantScale2, quantScale2,  quantOffset2,     antiquantScale, antiquantOffset,
                    blocktable,  blockSize,     kvPaddingSize},
                   workspaceSize, executor);
}

ANYNPU_SECOND_STAGE(aclnnIncreFlashAttentionV4, kIncreV4)

extern "C" aclnnStatus aclnnFusedInferAttentionScoreGetWorkspaceSize(
    const aclTensor* query, const aclTensorList* key, const aclTensorList* value, const aclTensor* pseShiftOptional,
    const aclTensor* attenMaskOptional, const aclIntArray* actualSeqLengthsOptional,
    const aclIntArray* actualSeqLengthsKvOptional, const aclTensor* deqScale1Optional,
    const aclTensor* quantScale1Optional, const aclTensor* deqScale2Optional, const aclTensor* quantScale2Optional,
    const aclTensor* quantOffset2Optional, const aclTensor* antiquantScaleOptional,
    const aclTensor* antiquantOffsetOptional, const aclTensor* blockTableOptional,
    const aclTensor* queryPaddingSizeOptional, const aclTensor* kvPaddingSizeOptional, int64_t numHeads,
    double scaleValue, int64_t preTokens, int64_t nextTokens, char* inputLayout, int64_t numKeyValueHeads,
    int64_t sparseMode, int64_t, int64_t blockSize, int64_t antiquantMode, bool softmaxLseFlag,
    const aclTensor* attentionOut, const aclTensor* softmaxLse, uint64_t* workspaceSize, aclOpExecutor** executor) {
  return fused(kFused,
               {query,
                key,
                value,
                pseShiftOptional,
                attenMaskOptional,
                actualSeqLengthsOptional,
                actualSeqLengthsKvOptional,
                deqScale1Optional,
                quantScale1Optional,
                deqScale2Optional,
                quantScale2Optional,
                quantOffset2Optional,
                antiquantScaleOptional,
                antiquantOffsetOptional,
                blockTableOptional,
                queryPaddingSizeOptional,
                kvPaddingSizeOptional,
                numHeads,
                scaleValue,
                {sparseMode, preTokens, nextTokens},
                inputLayout,
                numKeyValueHeads,
                blockSize,
                antiquantMode,
                softmaxLseFlag,
                attentionOut,
                softmaxLse},
               workspaceSize, executor);
}

ANYNPU_SECOND_STAGE(aclnnFusedInferAttentionScore, kFused)

extern "C" aclnnStatus aclnnFusedInferAttentionScoreV2GetWorkspaceSize(
    const aclTensor* query, const aclTensorList* key, const aclTensorList* value, const aclTensor* pseShiftOptional,
    const aclTensor* attenMaskOptional, const aclIntArray* actualSeqLengthsOptional,
    const aclIntArray* actualSeqLengthsKvOptional, const aclTensor* deqScale1Optional,
    const aclTensor* quantScale1Optional, const aclTensor* deqScale2Optional, const aclTensor* quantScale2Optional,
    const aclTensor* quantOffset2Optional, const aclTensor* antiquantScaleOptional,
    const aclTensor* antiquantOffsetOptional, const aclTensor* blockTableOptional,
    const aclTensor* queryPaddingSizeOptional, const aclTensor* kvPaddingSizeOptional,
    const aclTensor* keyAntiquantScaleOptional, const aclTensor* keyAntiquantOffsetOptional,
    const aclTensor* valueAntiquantScaleOptional, const aclTensor* valueAntiquantOffsetOptional,
    const aclTensor* keySharedPrefixOptional, const aclTensor* valueSharedPrefixOptional,
    const aclIntArray* actualSharedPrefixLenOptional, int64_t numHeads, double scaleValue, int64_t preTokens,
    int64_t nextTokens, char* inputLayout, int64_t numKeyValueHeads, int64_t sparseMode, int64_t, int64_t blockSize,
    int64_t antiquantMode, bool softmaxLseFlag, int64_t keyAntiquantMode, int64_t valueAntiquantMode,
    const aclTensor* attentionOut, const aclTensor* softmaxLse, uint64_t* workspaceSize, aclOpExecutor** executor) {
  return fused(kFusedV2,
               {query,
                key,
                value,
                pseShiftOptional,
                attenMaskOptional,
                actualSeqLengthsOptional,
                actualSeqLengthsKvOptional,
                deqScale1Optional,
                quantScale1Optional,
                deqScale2Optional,
                quantScale2Optional,
                quantOffset2Optional,
                antiquantScaleOptional,
                antiquantOffsetOptional,
                blockTableOptional,
                queryPaddingSizeOptional,
                kvPaddingSizeOptional,
                numHeads,
                scaleValue,
                {sparseMode, preTokens, nextTokens},
                inputLayout,
                numKeyValueHeads,
                blockSize,
                antiquantMode,
                softmaxLseFlag,
                attentionOut,
                softmaxLse,
                keyAntiquantScaleOptional,
                keyAntiquantOffsetOptional,
                valueAntiquantScaleOptional,
                valueAntiquantOffsetOptional,
                keySharedPrefixOptional,
                valueSharedPrefixOptional,
                actualSharedPrefixLenOptional,
                keyAntiquantMode,
                valueAntiquantMode},
               workspaceSize, executor);
}

ANYNPU_SECOND_STAGE(aclnnFusedInferAttentionScoreV2, kFusedV2)

extern "C" aclnnStatus aclnnFusedInferAttentionScoreV3GetWorkspaceSize(
    const aclTensor* query, const aclTensorList* key, const aclTensorList* value, const aclTensor* pseShiftOptional,
    const aclTensor* attenMaskOptional, const aclIntArray* actualSeqLengthsOptional,
    const aclIntArray* actualSeqLengthsKvOptional, const aclTensor* deqScale1Optional,
    const aclTensor* quantScale1Optional, const aclTensor* deqScale2Optional, const aclTensor* quantScale2Optional,
    const aclTensor* quantOffset2Optional, const aclTensor* antiquantScaleOptional,
    const aclTensor* antiquantOffsetOptional, const aclTensor* blockTableOptional,
    const aclTensor* queryPaddingSizeOptional, const aclTensor* kvPaddingSizeOptional,
    const aclTensor* keyAntiquantScaleOptional, const aclTensor* keyAntiquantOffsetOptional,
    const aclTensor* valueAntiquantScaleOptional, const aclTensor* valueAntiquantOffsetOptional,
    const aclTensor* keySharedPrefixOptional, const aclTensor* valueSharedPrefixOptional,
    const aclIntArray* actualSharedPrefixLenOptional, const aclTensor* queryRopeOptional,
    const aclTensor* keyRopeOptional, const aclTensor* keyRopeAntiquantScaleOptional, int64_t numHeads,
    double scaleValue, int64_t preTokens, int64_t nextTokens, char* inputLayout, int64_t numKeyValueHeads,
    int64_t sparseMode, int64_t, int64_t blockSize, int64_t antiquantMode, bool softmaxLseFlag,
    int64_t keyAntiquantMode, int64_t valueAntiquantMode, const aclTensor* attentionOut, const aclTensor* softmaxLse,
    uint64_t* workspaceSize, aclOpExecutor** executor) {
  return fused(kFusedV3,
               {query,
                key,
                value,
                pseShiftOptional,
                attenMaskOptional,
                actualSeqLengthsOptional,
                actualSeqLengthsKvOptional,
                deqScale1Optional,
                quantScale1Optional,
                deqScale2Optional,
                quantScale2Optional,
                quantOffset2Optional,
                antiquantScaleOptional,
                antiquantOffsetOptional,
                blockTableOptional,
                queryPaddingSizeOptional,
                kvPaddingSizeOptional,
                numHeads,
                scaleValue,
                {sparseMode, preTokens, nextTokens},
                inputLayout,
                numKeyValueHeads,
                blockSize,
                antiquantMode,
                softmaxLseFlag,
                attentionOut,
                softmaxLse,
                keyAntiquantScaleOptional,
                keyAntiquantOffsetOptional,
                valueAntiquantScaleOptional,
                valueAntiquantOffsetOptional,
                keySharedPrefixOptional,
                valueSharedPrefixOptional,
                actualSharedPrefixLenOptional,
                keyAntiquantMode,
                valueAntiquantMode,
                queryRopeOptional,
                keyRopeOptional,
                keyRopeAntiquantScaleOptional},
               workspaceSize, executor);
}

ANYNPU_SECOND_STAGE(aclnnFusedInferAttentionScoreV3, kFusedV3)

extern "C" aclnnStatus aclnnPromptFlashAttentionV2GetWorkspaceSize(
    const aclTensor* query, const aclTensor* key, const aclTensor* value, const aclTensor* pseShift,
    const aclTensor* attenMask, const aclIntArray* actualSeqLengths, const aclIntArray* actualSeqLengthsKv,
    const aclTensor* deqScale1, const aclTensor* quantScale1, const aclTensor* deqScale2, const aclTensor* quantScale2,
    const aclTensor* quantOffset2, int64_t numHeads, double scaleValue, int64_t preTokens, int64_t nextTokens,
    char* inputLayout, int64_t numKeyValueHeads, int64_t sparseMode, const aclTensor* attentionOut,
    uint64_t* workspaceSize, aclOpExecutor** executor) {
  return prompt(kPromptV2,
                {query,
                 key,
                 value,
                 pseShift,
                 attenMask,
                 actualSeqLengths,
                 actualSeqLengthsKv,
                 deqScale1,
                 quantScale1,
                 deqScale2,
                 quantScale2,
                 quantOffset2,
                 numHeads,
                 scaleValue,
                 {sparseMode, preTokens, nextTokens},
                 inputLayout,
                 numKeyValueHeads,
                 attentionOut},
                workspaceSize, executor);
}

ANYNPU_SECOND_STAGE(aclnnPromptFlashAttentionV2, kPromptV2)

extern "C" aclnnStatus aclnnPromptFlashAttentionV3GetWorkspaceSize(
    const aclTensor* query, const aclTensor* key, const aclTensor* value, const aclTensor* pseShift,
    const aclTensor* attenMask, const aclIntArray* actualSeqLengths, const aclIntArray* actualSeqLengthsKv,
    const aclTensor* deqScale1, const aclTensor* quantScale1, const aclTensor* deqScale2, const aclTensor* quantScale2,
    const aclTensor* quantOffset2, int64_t numHeads, double scaleValue, int64_t preTokens, int64_t nextTokens,
    char* inputLayout, int64_t numKeyValueHeads, int64_t sparseMode, int64_t, const aclTensor* attentionOut,
    uint64_t* workspaceSize, aclOpExecutor** executor) {
  return prompt(kPromptV3,
                {query,
                 key,
                 value,
                 pseShift,
                 attenMask,
                 actualSeqLengths,
                 actualSeqLengthsKv,
                 deqScale1,
                 quantScale1,
                 deqScale2,
                 quantScale2,
                 quantOffset2,
                 numHeads,
                 scaleValue,
                 {sparseMode, preTokens, nextTokens},
                 inputLayout,
                 numKeyValueHeads,
                 attentionOut},
                workspaceSize, executor);
}

ANYNPU_SECOND_STAGE(aclnnPromptFlashAttentionV3, kPromptV3)
