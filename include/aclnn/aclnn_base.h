/* SPDX-License-Identifier: Apache-2.0 */
#ifndef ANYNPU_ACLNN_ACLNN_BASE_H_
#define ANYNPU_ACLNN_ACLNN_BASE_H_

#include "acl/acl_base.h"
#include "aclnn/acl_meta.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The two-stage functions need neither call; both succeed. */
ACL_FUNC_VISIBILITY aclnnStatus aclnnInit(const char* configPath);
ACL_FUNC_VISIBILITY aclnnStatus aclnnFinalize(void);

#ifdef __cplusplus
}
#endif

#endif /* ANYNPU_ACLNN_ACLNN_BASE_H_ */
