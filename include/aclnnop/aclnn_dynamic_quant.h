/* SPDX-License-Identifier: Apache-2.0 */
#ifndef ANYNPU_ACLNNOP_ACLNN_DYNAMIC_QUANT_H_
#define ANYNPU_ACLNNOP_ACLNN_DYNAMIC_QUANT_H_

#include "aclnn/aclnn_base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* yOut = rint(x * smoothScalesOptional / scaleOut), scaleOut the largest magnitude of each row over 127 (int4: 7). */
ACL_FUNC_VISIBILITY aclnnStatus aclnnDynamicQuantGetWorkspaceSize(const aclTensor* x,
                                                                  const aclTensor* smoothScalesOptional,
                                                                  const aclTensor* yOut, const aclTensor* scaleOut,
                                                                  uint64_t* workspaceSize, aclOpExecutor** executor);
ACL_FUNC_VISIBILITY aclnnStatus aclnnDynamicQuant(void* workspace, uint64_t workspaceSize, aclOpExecutor* executor,
                                                  aclrtStream stream);

#ifdef __cplusplus
}
#endif

#endif /* ANYNPU_ACLNNOP_ACLNN_DYNAMIC_QUANT_H_ */
