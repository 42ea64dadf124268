/* SPDX-License-Identifier: Apache-2.0 */
#ifndef ANYNPU_ACLNNOP_ACLNN_SILU_H_
#define ANYNPU_ACLNNOP_ACLNN_SILU_H_

#include "aclnn/aclnn_base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* out = self * sigmoid(self). */
ACL_FUNC_VISIBILITY aclnnStatus aclnnSiluGetWorkspaceSize(const aclTensor* self, aclTensor* out,
                                                          uint64_t* workspaceSize, aclOpExecutor** executor);
ACL_FUNC_VISIBILITY aclnnStatus aclnnSilu(void* workspace, uint64_t workspaceSize, aclOpExecutor* executor,
                                          aclrtStream stream);

#ifdef __cplusplus
}
#endif

#endif /* ANYNPU_ACLNNOP_ACLNN_SILU_H_ */
