// SPDX-License-Identifier: Apache-2.0
// One planted defect for each name: what checking mode has to find. "clean" has none and uses everything.
#include <cstring>

#include "aclnnop/aclnn_cast.h"
#include "aclnnop/aclnn_convert_weight_to_int4_pack.h"
#include "aclnnop/aclnn_weight_quant_batch_matmul_v2.h"
#include "harness.h"

namespace {

struct CastCall {
  Device<float> from{{4}, ACL_FLOAT, {1, 2, 3, 4}};
  Device<int32_t> to{{4}, ACL_INT32, {0, 0, 0, 0}};
  uint64_t size = 0;
  aclOpExecutor* executor = nullptr;

  void first() { EXPECT_OK(aclnnCastGetWorkspaceSize(from.tensor, ACL_INT32, to.tensor, &size, &executor)); }
  void second(aclrtStream stream) { EXPECT_OK(aclnnCast(nullptr, size, executor, stream)); }
};

aclrtStream new_stream() {
  aclrtStream stream = nullptr;
  EXPECT_OK(aclrtCreateStream(&stream));
  return stream;
}

void clean() {
  CastCall call;
  const aclrtStream stream = new_stream(), other = new_stream();
  aclrtEvent event = nullptr;
  EXPECT_OK(aclrtCreateEvent(&event));
  call.first();
  EXPECT_OK(aclSetAclOpExecutorRepeatable(call.executor));
  call.second(stream);
  call.second(stream);
  EXPECT_OK(aclDestroyAclOpExecutor(call.executor));
  EXPECT_OK(aclrtRecordEvent(event, stream));
  EXPECT_OK(aclrtStreamWaitEvent(other, event));
  EXPECT_OK(aclrtSynchronizeStream(other));  // reaches the work on `stream` through the event
  EXPECT(call.to.read() == std::vector<int32_t>({1, 2, 3, 4}));
  call.first();
  call.second(stream);
  EXPECT_OK(aclrtRecordEvent(event, stream));
  EXPECT_OK(aclrtSynchronizeEvent(event));
  EXPECT(call.to.read()[0] == 1);
  call.first();
  call.second(stream);
  EXPECT_OK(aclrtSynchronizeDevice());
  EXPECT(call.to.read()[0] == 1);
  const int64_t values[] = {1, 2};
  aclIntArray* array = aclCreateIntArray(values, 2);
  EXPECT_OK(aclDestroyIntArray(array));
  const aclTensor* members[] = {make_tensor({4}, ACL_FLOAT, call.from.data)};
  EXPECT_OK(aclDestroyTensorList(aclCreateTensorList(members, 1)));
  aclrtContext context = nullptr;
  EXPECT_OK(aclrtCreateContext(&context, 0));
  EXPECT_OK(aclrtDestroyContext(context));
  void* host = nullptr;
  EXPECT_OK(aclrtMallocHost(&host, 64));
  EXPECT_OK(aclrtFreeHost(host));
  EXPECT_OK(aclrtDestroyEvent(event));
  EXPECT_OK(aclrtDestroyStream(stream));
  EXPECT_OK(aclrtDestroyStream(other));
}

void leaked_tensor() { EXPECT(make_tensor({2, 3}, ACL_FLOAT16, nullptr) != nullptr); }

void leaked_array() {
  const int64_t values[] = {1, 2};
  EXPECT(aclCreateIntArray(values, 2) != nullptr);
}

void leaked_stream() { new_stream(); }

// The program ends while the stream works.
void leaked_busy_stream() {
  CastCall call;
  const aclrtStream stream = new_stream();
  for (int i = 0; i < 2000; ++i) {
    call.first();
    call.second(stream);
  }
}

void leaked_event() {
  aclrtEvent event = nullptr;
  EXPECT_OK(aclrtCreateEvent(&event));
}

void leaked_context() {
  aclrtContext context = nullptr;
  EXPECT_OK(aclrtCreateContext(&context, 0));
}

void leaked_memory() {
  void* data = nullptr;
  EXPECT_OK(aclrtMalloc(&data, 1000, ACL_MEM_MALLOC_HUGE_FIRST));
}

void leaked_host_memory() {
  void* data = nullptr;
  EXPECT_OK(aclrtMallocHost(&data, 1000));
}

void leaked_executor() {
  CastCall call;
  call.first();
  EXPECT_OK(aclSetAclOpExecutorRepeatable(call.executor));
  call.second(nullptr);
  EXPECT_OK(aclrtSynchronizeStream(nullptr));
}

void executor_not_run() { CastCall().first(); }

void exceeds_allocation() {
  Device<int16_t> memory({100}, ACL_INT16, std::vector<int16_t>(100, 1));
  EXPECT_OK(aclDestroyTensor(make_tensor({100}, ACL_INT32, memory.data)));
}

void host_pointer() {
  float values[4] = {1, 2, 3, 4};
  EXPECT_OK(aclDestroyTensor(make_tensor({4}, ACL_FLOAT, values)));
}

void host_pointer_in_a_copy() {
  char from[8] = {}, to[8];
  EXPECT(aclrtMemcpy(to, 8, from, 8, ACL_MEMCPY_HOST_TO_DEVICE) != ACL_SUCCESS);
}

void use_after_free() {
  CastCall call;
  aclTensor* gone = make_tensor({4}, ACL_INT32, call.to.data);
  EXPECT_OK(aclDestroyTensor(gone));
  EXPECT(aclnnCastGetWorkspaceSize(call.from.tensor, ACL_INT32, gone, &call.size, &call.executor) != ACLNN_SUCCESS);
}

void use_of_freed_memory() {
  CastCall call;
  void* data = nullptr;
  EXPECT_OK(aclrtMalloc(&data, 16, ACL_MEM_MALLOC_HUGE_FIRST));
  aclTensor* tensor = make_tensor({4}, ACL_INT32, data);
  EXPECT_OK(aclnnCastGetWorkspaceSize(call.from.tensor, ACL_INT32, tensor, &call.size, &call.executor));
  EXPECT_OK(aclrtFree(data));
  EXPECT(aclnnCast(nullptr, 0, call.executor, nullptr) != ACLNN_SUCCESS);
  EXPECT_OK(aclDestroyAclOpExecutor(call.executor));
  EXPECT_OK(aclDestroyTensor(tensor));
}

void double_free() {
  aclTensor* tensor = make_tensor({4}, ACL_FLOAT, nullptr);
  EXPECT_OK(aclDestroyTensor(tensor));
  EXPECT(aclDestroyTensor(tensor) != ACLNN_SUCCESS);
}

void double_free_of_memory() {
  void* data = nullptr;
  EXPECT_OK(aclrtMalloc(&data, 16, ACL_MEM_MALLOC_HUGE_FIRST));
  EXPECT_OK(aclrtFree(data));
  EXPECT(aclrtFree(data) != ACL_SUCCESS);
}

void invalid_free() {
  int value = 0;
  EXPECT(aclrtFree(&value) != ACL_SUCCESS);
}

void invalid_handle() { EXPECT(aclDestroyTensor(reinterpret_cast<aclTensor*>(0x1230)) != ACLNN_SUCCESS); }

void unsynchronised_read() {
  CastCall call;
  call.first();
  call.second(nullptr);
  EXPECT(call.to.read()[0] == 1);
}

void unsynchronised_read_of_another_stream() {
  CastCall call;
  const aclrtStream stream = new_stream(), other = new_stream();
  call.first();
  call.second(stream);
  EXPECT_OK(aclrtSynchronizeStream(other));
  EXPECT(call.to.read()[0] == 1);
  EXPECT_OK(aclrtSynchronizeStream(stream));
  EXPECT_OK(aclrtDestroyStream(stream));
  EXPECT_OK(aclrtDestroyStream(other));
}

void workspace_too_small() {
  Device<float> x({16, 32}, ACL_FLOAT, std::vector<float>(16 * 32, 1));
  Device<int8_t> weight({32, 16}, ACL_INT8, std::vector<int8_t>(32 * 16, 1));
  Device<float> scale({16}, ACL_FLOAT, std::vector<float>(16, 1)), y({16, 16}, ACL_FLOAT, std::vector<float>(256, 9));
  uint64_t size = 0;
  aclOpExecutor* executor = nullptr;
  EXPECT_OK(aclnnWeightQuantBatchMatmulV2GetWorkspaceSize(x.tensor, weight.tensor, scale.tensor, nullptr, nullptr,
                                                          nullptr, nullptr, 0, y.tensor, &size, &executor));
  EXPECT(size > 0);
  EXPECT(aclnnWeightQuantBatchMatmulV2(nullptr, size - 1, executor, nullptr) != ACLNN_SUCCESS);
  EXPECT_OK(aclDestroyAclOpExecutor(executor));
}

void wrong_executor() {
  CastCall call;
  call.first();
  EXPECT(aclnnConvertWeightToINT4Pack(nullptr, 0, call.executor, nullptr) != ACLNN_SUCCESS);
  EXPECT_OK(aclDestroyAclOpExecutor(call.executor));
}

void executor_used_twice() {
  CastCall call;
  call.first();
  call.second(nullptr);
  EXPECT_OK(aclrtSynchronizeStream(nullptr));
  EXPECT(aclnnCast(nullptr, 0, call.executor, nullptr) != ACLNN_SUCCESS);
}

void event_not_recorded() {
  aclrtEvent event = nullptr;
  EXPECT_OK(aclrtCreateEvent(&event));
  EXPECT_OK(aclrtStreamWaitEvent(nullptr, event));
  EXPECT_OK(aclrtDestroyEvent(event));
}

// Found in strict mode only.
void hardware_limit() {
  Device<int32_t> weight({2, 2, 8}, ACL_INT32, std::vector<int32_t>(32, 1)), packed({2, 2, 1}, ACL_INT32, {0, 0, 0, 0});
  uint64_t size = 0;
  aclOpExecutor* executor = nullptr;
  if (aclnnConvertWeightToINT4PackGetWorkspaceSize(weight.tensor, packed.tensor, &size, &executor) == ACLNN_SUCCESS) {
    EXPECT_OK(aclDestroyAclOpExecutor(executor));
  }
}

const struct {
  const char* name;
  void (*run)();
} defects[] = {
    {"clean", clean},
    {"leaked-tensor", leaked_tensor},
    {"leaked-array", leaked_array},
    {"leaked-stream", leaked_stream},
    {"leaked-stream: busy", leaked_busy_stream},
    {"leaked-event", leaked_event},
    {"leaked-context", leaked_context},
    {"leaked-memory", leaked_memory},
    {"leaked-host-memory", leaked_host_memory},
    {"leaked-executor", leaked_executor},
    {"executor-not-run", executor_not_run},
    {"exceeds-allocation", exceeds_allocation},
    {"host-pointer", host_pointer},
    {"host-pointer: copy", host_pointer_in_a_copy},
    {"use-after-free", use_after_free},
    {"use-after-free: memory", use_of_freed_memory},
    {"use-after-free: executor", executor_used_twice},
    {"double-free", double_free},
    {"double-free: memory", double_free_of_memory},
    {"invalid-free", invalid_free},
    {"invalid-handle", invalid_handle},
    {"unsynchronised-read", unsynchronised_read},
    {"unsynchronised-read: other stream", unsynchronised_read_of_another_stream},
    {"workspace-too-small", workspace_too_small},
    {"wrong-executor", wrong_executor},
    {"event-not-recorded", event_not_recorded},
    {"hardware-limit", hardware_limit},
};

}  // namespace

int main(int count, char** arguments) {
  if (count == 1) {
    for (const auto& defect : defects) std::puts(defect.name);
    return 0;
  }
  Session session;
  for (const auto& defect : defects) {
    if (std::strcmp(defect.name, arguments[1]) == 0) {
      defect.run();
      return 0;
    }
  }
  std::fprintf(stderr, "no such defect: %s\n", arguments[1]);
  return 2;
}
