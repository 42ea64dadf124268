/* SPDX-License-Identifier: Apache-2.0
 *
 * The smallest program in plain C: eight floats become integers on a stream.
 *   anynpu cc examples/c/cast.c -o cast && ./cast
 */
#include <stdio.h>
#include <stdlib.h>

#include "acl/acl.h"
#include "aclnnop/aclnn_cast.h"

static void check(int status, const char* what) {
  const char* text;
  if (status == 0) return;
  text = aclGetRecentErrMsg();
  fprintf(stderr, "%s failed with %d: %s\n", what, status, text ? text : "");
  exit(1);
}

int main(void) {
  const float values[8] = {-1.7f, -0.5f, 0.0f, 0.5f, 1.7f, 2.0f, 300.0f, 1e20f};
  const int64_t shape[1] = {8};
  int32_t result[8];
  int i;

  aclrtStream stream = NULL;
  void *from = NULL, *to = NULL, *workspace = NULL;
  check(aclInit(NULL), "aclInit");
  check(aclrtSetDevice(0), "aclrtSetDevice");
  check(aclrtCreateStream(&stream), "aclrtCreateStream");
  check(aclrtMalloc(&from, sizeof(values), ACL_MEM_MALLOC_HUGE_FIRST), "aclrtMalloc");
  check(aclrtMalloc(&to, sizeof(result), ACL_MEM_MALLOC_HUGE_FIRST), "aclrtMalloc");
  check(aclrtMemcpy(from, sizeof(values), values, sizeof(values), ACL_MEMCPY_HOST_TO_DEVICE), "aclrtMemcpy");

  aclTensor* x = aclCreateTensor(shape, 1, ACL_FLOAT, NULL, 0, ACL_FORMAT_ND, shape, 1, from);
  aclTensor* y = aclCreateTensor(shape, 1, ACL_INT32, NULL, 0, ACL_FORMAT_ND, shape, 1, to);

  /* First stage: the arguments are checked, the workspace is measured. Second stage: the work goes to the stream. */
  uint64_t size = 0;
  aclOpExecutor* executor = NULL;
  check(aclnnCastGetWorkspaceSize(x, ACL_INT32, y, &size, &executor), "aclnnCastGetWorkspaceSize");
  if (size > 0) check(aclrtMalloc(&workspace, size, ACL_MEM_MALLOC_HUGE_FIRST), "aclrtMalloc");
  check(aclnnCast(workspace, size, executor, stream), "aclnnCast");
  check(aclrtSynchronizeStream(stream), "aclrtSynchronizeStream");

  check(aclrtMemcpy(result, sizeof(result), to, sizeof(result), ACL_MEMCPY_DEVICE_TO_HOST), "aclrtMemcpy");
  for (i = 0; i < 8; ++i) printf("%g -> %d\n", values[i], (int)result[i]);

  aclDestroyTensor(x);
  aclDestroyTensor(y);
  if (size > 0) aclrtFree(workspace);
  aclrtFree(from);
  aclrtFree(to);
  aclrtDestroyStream(stream);
  aclrtResetDevice(0);
  aclFinalize();
  return 0;
}
