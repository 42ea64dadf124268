/* SPDX-License-Identifier: Apache-2.0 */
#ifndef ANYNPU_ACLNNOP_ACLNN_RMS_NORM_H_
#define ANYNPU_ACLNNOP_ACLNN_RMS_NORM_H_

#include "aclnn/aclnn_base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* yOut = x * rstdOut * gamma, rstdOut = 1 / sqrt(mean(x^2) + epsilon) over the axes of gamma. */
ACL_FUNC_VISIBILITY aclnnStatus aclnnRmsNormGetWorkspaceSize(const aclTensor* x, const aclTensor* gamma, double epsilon,
                                                             const aclTensor* yOut, const aclTensor* rstdOut,
                                                             uint64_t* workspaceSize, aclOpExecutor** executor);
ACL_FUNC_VISIBILITY aclnnStatus aclnnRmsNorm(void* workspace, uint64_t workspaceSize, aclOpExecutor* executor,
                                             aclrtStream stream);

#ifdef __cplusplus
}
#endif

#endif /* ANYNPU_ACLNNOP_ACLNN_RMS_NORM_H_ */
