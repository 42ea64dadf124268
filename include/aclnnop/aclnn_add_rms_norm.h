/* SPDX-License-Identifier: Apache-2.0 */
#ifndef ANYNPU_ACLNNOP_ACLNN_ADD_RMS_NORM_H_
#define ANYNPU_ACLNNOP_ACLNN_ADD_RMS_NORM_H_

#include "aclnn/aclnn_base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The same of xOut = x1 + x2. */
ACL_FUNC_VISIBILITY aclnnStatus aclnnAddRmsNormGetWorkspaceSize(const aclTensor* x1, const aclTensor* x2,
                                                                const aclTensor* gamma, double epsilonOptional,
                                                                const aclTensor* yOut, const aclTensor* rstdOut,
                                                                const aclTensor* xOut, uint64_t* workspaceSize,
                                                                aclOpExecutor** executor);
ACL_FUNC_VISIBILITY aclnnStatus aclnnAddRmsNorm(void* workspace, uint64_t workspaceSize, aclOpExecutor* executor,
                                                aclrtStream stream);

#ifdef __cplusplus
}
#endif

#endif /* ANYNPU_ACLNNOP_ACLNN_ADD_RMS_NORM_H_ */
