/* SPDX-License-Identifier: Apache-2.0 */
#ifndef ANYNPU_ACL_ACL_H_
#define ANYNPU_ACL_ACL_H_

#include "acl/acl_base.h"
#include "acl/acl_rt.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Starts the runtime. configPath may be NULL; a file is not read, everything has a default. */
ACL_FUNC_VISIBILITY aclError aclInit(const char* configPath);
/* Waits for all streams and stops the runtime. */
ACL_FUNC_VISIBILITY aclError aclFinalize(void);

#ifdef __cplusplus
}
#endif

#endif /* ANYNPU_ACL_ACL_H_ */
