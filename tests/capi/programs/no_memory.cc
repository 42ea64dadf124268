// SPDX-License-Identifier: Apache-2.0
// Every allocation of a round of calls fails once, alone and with all that follow. Each time a call says so in a status and
// a sentence, nobody waits for what does not come, and everything can be given back. Linked with failing_malloc.cc.
#include "aclnnop/aclnn_cast.h"
#include "failing_malloc.h"
#include "harness.h"

namespace {

const int32_t kTransposed[] = {1, 3, 2, 4};

void nothing(void*) {}

// Whether a call went well; one that did not has said why.
bool take(int status) {
  if (status == ACL_SUCCESS) return true;
  EXPECT(aclGetRecentErrMsg() != nullptr);
  return false;
}
bool made(const void* handle) { return take(handle == nullptr); }

struct Round {
  bool device = false;
  aclrtContext context = nullptr;
  aclrtStream first = nullptr, second = nullptr;
  aclrtEvent event = nullptr;
  void *data = nullptr, *host = nullptr;
  aclTensor *from = nullptr, *to = nullptr;
  aclTensorList* list = nullptr;
  aclScalar* scalar = nullptr;
  aclIntArray* array = nullptr;
  aclOpExecutor* executor = nullptr;
  float values[4] = {1, 2, 3, 4};
  int64_t shape[2] = {2, 2}, transposed[2] = {1, 2};

  bool run() {
    uint64_t size = 0;
    device = take(aclrtSetDevice(0));
    if (!device || !take(aclrtCreateContext(&context, 0)) || !take(aclrtCreateStream(&first)) ||
        !take(aclrtCreateStream(&second)) || !take(aclrtCreateEvent(&event)) ||
        !take(aclrtMalloc(&data, 64, ACL_MEM_MALLOC_NORMAL_ONLY)) || !take(aclrtMallocHost(&host, 64)) ||
        !take(aclrtMemcpyAsync(data, 64, values, sizeof(values), ACL_MEMCPY_HOST_TO_DEVICE, first))) {
      return false;
    }
    from = aclCreateTensor(shape, 2, ACL_FLOAT, transposed, 0, ACL_FORMAT_ND, shape, 2, data);
    if (!made(from)) return false;
    to = aclCreateTensor(shape, 2, ACL_INT32, nullptr, 8, ACL_FORMAT_ND, shape, 2, data);
    if (!made(to)) return false;
    const aclTensor* members[] = {to};
    list = aclCreateTensorList(members, 1);
    if (!made(list)) return false;
    scalar = aclCreateScalar(values, ACL_FLOAT);
    if (!made(scalar)) return false;
    array = aclCreateIntArray(shape, 2);
    return made(array) && take(aclnnCastGetWorkspaceSize(from, ACL_INT32, to, &size, &executor)) &&
           take(aclSetAclOpExecutorRepeatable(executor)) && take(aclSetTensorAddr(executor, 0, from, data)) &&
           take(aclnnCast(nullptr, size, executor, first)) && take(aclrtRecordEvent(event, first)) &&
           take(aclrtStreamWaitEvent(second, event)) && take(aclrtLaunchHostFunc(second, nothing, nullptr)) &&
           take(aclrtMemcpyAsync(host, 16, static_cast<char*>(data) + 32, 16, ACL_MEMCPY_DEVICE_TO_HOST, second)) &&
           take(aclrtSynchronizeStreamWithTimeout(second, 10000)) && take(aclrtSynchronizeStream(first));
  }

  // Gives back what the calls have made, with memory again.
  void finish() {
    if (device) EXPECT(aclrtSynchronizeDeviceWithTimeout(10000) != ACL_ERROR_RT_STREAM_SYNC_TIMEOUT);
    if (event != nullptr) {
      aclrtEventWaitStatus waiting;
      EXPECT_OK(aclrtSynchronizeEventWithTimeout(event, 10000));
      EXPECT_OK(aclrtQueryEventWaitStatus(event, &waiting));
      EXPECT(waiting == ACL_EVENT_WAIT_STATUS_COMPLETE);
      EXPECT_OK(aclrtDestroyEvent(event));
    }
    if (executor != nullptr) EXPECT_OK(aclDestroyAclOpExecutor(executor));
    if (list != nullptr) EXPECT_OK(aclDestroyTensorList(list));
    if (list == nullptr && to != nullptr) EXPECT_OK(aclDestroyTensor(to));
    if (from != nullptr) EXPECT_OK(aclDestroyTensor(from));
    if (scalar != nullptr) EXPECT_OK(aclDestroyScalar(scalar));
    if (array != nullptr) EXPECT_OK(aclDestroyIntArray(array));
    for (aclrtStream stream : {first, second}) {
      if (stream != nullptr) EXPECT_OK(aclrtDestroyStream(stream));
    }
    if (data != nullptr) EXPECT_OK(aclrtFree(data));
    if (host != nullptr) EXPECT_OK(aclrtFreeHost(host));
    if (context != nullptr) EXPECT_OK(aclrtDestroyContext(context));
    if (device) EXPECT_OK(aclrtResetDevice(0));
  }
};

}  // namespace

int main() {
  int64_t failures = 0;
  for (const bool all : {false, true}) {
    for (int64_t number = 0, more = 1; more != 0; ++number) {
      Round round;
      fail_allocations(number, all);
      const bool fine = round.run();
      more = allocations_failed();
      fail_allocations(-1, false);
      EXPECT(fine || more != 0);
      if (fine) EXPECT(std::memcmp(round.host, kTransposed, sizeof(kTransposed)) == 0);
      if (!fine) ++failures;
      round.finish();
    }
  }
  EXPECT(failures > 50);
  std::puts("ok");
  return 0;
}
