/* SPDX-License-Identifier: Apache-2.0 */
#ifndef ANYNPU_ACLNNOP_ACLNN_MOE_INIT_ROUTING_H_
#define ANYNPU_ACLNNOP_ACLNN_MOE_INIT_ROUTING_H_

#include "aclnn/aclnn_base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* expandedXOut: the rows of the first min(N, activeNum) * K slots by expert; rowIdx numbers the slots, normally j * N + n. */
ACL_FUNC_VISIBILITY aclnnStatus aclnnMoeInitRoutingGetWorkspaceSize(const aclTensor* x, const aclTensor* rowIdx,
                                                                    const aclTensor* expertIdx, int64_t activeNum,
                                                                    const aclTensor* expandedXOut,
                                                                    const aclTensor* expandedRowIdxOut,
                                                                    const aclTensor* expandedExpertIdxOut,
                                                                    uint64_t* workspaceSize, aclOpExecutor** executor);
ACL_FUNC_VISIBILITY aclnnStatus aclnnMoeInitRouting(void* workspace, uint64_t workspaceSize, aclOpExecutor* executor,
                                                    aclrtStream stream);

#ifdef __cplusplus
}
#endif

#endif /* ANYNPU_ACLNNOP_ACLNN_MOE_INIT_ROUTING_H_ */
