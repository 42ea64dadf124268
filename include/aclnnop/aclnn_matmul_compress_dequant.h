/* SPDX-License-Identifier: Apache-2.0 */
#ifndef ANYNPU_ACLNNOP_ACLNN_MATMUL_COMPRESS_DEQUANT_H_
#define ANYNPU_ACLNNOP_ACLNN_MATMUL_COMPRESS_DEQUANT_H_

#include "aclnn/aclnn_base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* out = (x1 @ W.T + bias) * deqScale; x2 and compressIndex hold W (n, k) in anynpu's format c8, compressInfo is
 * [8, 8, k, n, 1]; offsetW is null and offsetX 0. */
ACL_FUNC_VISIBILITY aclnnStatus aclnnMatmulCompressDequantGetWorkspaceSize(
    const aclTensor* x1, const aclTensor* x2, const aclTensor* compressIndex, const aclTensor* bias,
    const aclTensor* deqScale, const aclTensor* offsetW, int offsetX, const aclIntArray* compressInfo, aclTensor* out,
    uint64_t* workspaceSize, aclOpExecutor** executor);
ACL_FUNC_VISIBILITY aclnnStatus aclnnMatmulCompressDequant(void* workspace, uint64_t workspaceSize,
                                                           aclOpExecutor* executor, aclrtStream stream);

#ifdef __cplusplus
}
#endif

#endif /* ANYNPU_ACLNNOP_ACLNN_MATMUL_COMPRESS_DEQUANT_H_ */
