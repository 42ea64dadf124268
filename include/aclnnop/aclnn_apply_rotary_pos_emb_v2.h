/* SPDX-License-Identifier: Apache-2.0 */
#ifndef ANYNPU_ACLNNOP_ACLNN_APPLY_ROTARY_POS_EMB_V2_H_
#define ANYNPU_ACLNNOP_ACLNN_APPLY_ROTARY_POS_EMB_V2_H_

#include "aclnn/aclnn_base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The same with rotaryMode "half" or "interleave". */
ACL_FUNC_VISIBILITY aclnnStatus aclnnApplyRotaryPosEmbV2GetWorkspaceSize(aclTensor* queryRef, aclTensor* keyRef,
                                                                         const aclTensor* cos, const aclTensor* sin,
                                                                         int64_t layout, char* rotaryMode,
                                                                         uint64_t* workspaceSize,
                                                                         aclOpExecutor** executor);
ACL_FUNC_VISIBILITY aclnnStatus aclnnApplyRotaryPosEmbV2(void* workspace, uint64_t workspaceSize,
                                                         aclOpExecutor* executor, aclrtStream stream);

#ifdef __cplusplus
}
#endif

#endif /* ANYNPU_ACLNNOP_ACLNN_APPLY_ROTARY_POS_EMB_V2_H_ */
