/* SPDX-License-Identifier: Apache-2.0 */
#ifndef ANYNPU_ACLNNOP_ACLNN_NPU_FORMAT_CAST_H_
#define ANYNPU_ACLNNOP_ACLNN_NPU_FORMAT_CAST_H_

#include "aclnn/aclnn_base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The storage shape and the format that dstTensor must have; the caller releases dstShape with delete[]. additionalDtype has no effect. */
ACL_FUNC_VISIBILITY aclnnStatus aclnnNpuFormatCastCalculateSizeAndFormat(const aclTensor* srcTensor,
                                                                         const int dstFormat, const int additionalDtype,
                                                                         int64_t** dstShape, uint64_t* dstShapeSize,
                                                                         int* actualFormat);

/* dstTensor: srcTensor in the other of the formats ND and FRACTAL_NZ. */
ACL_FUNC_VISIBILITY aclnnStatus aclnnNpuFormatCastGetWorkspaceSize(const aclTensor* srcTensor, aclTensor* dstTensor,
                                                                   uint64_t* workspaceSize, aclOpExecutor** executor);
ACL_FUNC_VISIBILITY aclnnStatus aclnnNpuFormatCast(void* workspace, uint64_t workspaceSize, aclOpExecutor* executor,
                                                   aclrtStream stream);

#ifdef __cplusplus
}
#endif

#endif /* ANYNPU_ACLNNOP_ACLNN_NPU_FORMAT_CAST_H_ */
