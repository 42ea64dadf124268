/* SPDX-License-Identifier: Apache-2.0 */
#ifndef ANYNPU_ACLNNOP_ACLNN_TRANS_QUANT_PARAM_H_
#define ANYNPU_ACLNNOP_ACLNN_TRANS_QUANT_PARAM_H_

#include "aclnn/aclnn_base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The words of scales and offsets (null: none), in memory of the host; a single value serves all. The caller releases quantParam with delete[]. */
ACL_FUNC_VISIBILITY aclnnStatus aclnnTransQuantParam(const float* scaleArray, uint64_t scaleSize,
                                                     const float* offsetArray, uint64_t offsetSize,
                                                     uint64_t** quantParam, uint64_t* quantParamSize);

#ifdef __cplusplus
}
#endif

#endif /* ANYNPU_ACLNNOP_ACLNN_TRANS_QUANT_PARAM_H_ */
