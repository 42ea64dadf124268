/* SPDX-License-Identifier: Apache-2.0 */
#ifndef ANYNPU_ACLNNOP_ACLNN_ASCEND_QUANT_H_
#define ANYNPU_ACLNNOP_ACLNN_ASCEND_QUANT_H_

#include "aclnn/aclnn_base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* y = saturate(round_half_even(x * scale + offset)); roundMode "round", sqrtMode false; dstType is the type of y. */
ACL_FUNC_VISIBILITY aclnnStatus aclnnAscendQuantGetWorkspaceSize(const aclTensor* x, const aclTensor* scale,
                                                                 const aclTensor* offset, bool sqrtMode,
                                                                 const char* roundMode, int32_t dstType,
                                                                 const aclTensor* y, uint64_t* workspaceSize,
                                                                 aclOpExecutor** executor);
ACL_FUNC_VISIBILITY aclnnStatus aclnnAscendQuant(void* workspace, uint64_t workspaceSize, aclOpExecutor* executor,
                                                 aclrtStream stream);

#ifdef __cplusplus
}
#endif

#endif /* ANYNPU_ACLNNOP_ACLNN_ASCEND_QUANT_H_ */
