/* SPDX-License-Identifier: Apache-2.0 */
#ifndef ANYNPU_ACLNNOP_ACLNN_CONVERT_WEIGHT_TO_INT4_PACK_H_
#define ANYNPU_ACLNNOP_ACLNN_CONVERT_WEIGHT_TO_INT4_PACK_H_

#include "aclnn/aclnn_base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* INT32 values in [-8, 7] -> INT4 of the same shape, or INT32 with eight of them in each element. */
ACL_FUNC_VISIBILITY aclnnStatus aclnnConvertWeightToINT4PackGetWorkspaceSize(const aclTensor* weight,
                                                                             aclTensor* weightInt4Pack,
                                                                             uint64_t* workspaceSize,
                                                                             aclOpExecutor** executor);
ACL_FUNC_VISIBILITY aclnnStatus aclnnConvertWeightToINT4Pack(void* workspace, uint64_t workspaceSize,
                                                             aclOpExecutor* executor, aclrtStream stream);

#ifdef __cplusplus
}
#endif

#endif /* ANYNPU_ACLNNOP_ACLNN_CONVERT_WEIGHT_TO_INT4_PACK_H_ */
