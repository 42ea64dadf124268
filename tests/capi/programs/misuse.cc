// SPDX-License-Identifier: Apache-2.0
// Every wrong use gets a status: nulls, stale and made-up handles, wrong order of stages, bad workspaces and addresses.
#include <cmath>
#include <cstdint>

#include "aclnnop/aclnn_cast.h"
#include "aclnnop/aclnn_convert_weight_to_int4_pack.h"
#include "aclnnop/aclnn_weight_quant_batch_matmul_v2.h"
#include "harness.h"

namespace {

template <typename Handle>
Handle made_up(uint64_t number) {
  return reinterpret_cast<Handle>(number);
}

void before_a_device_is_set() {
  void* data = nullptr;
  aclrtStream stream = nullptr;
  int32_t device = -1;
  EXPECT_STATUS(aclFinalize(), ACL_ERROR_UNINITIALIZE);
  EXPECT_STATUS(aclrtMalloc(&data, 8, ACL_MEM_MALLOC_HUGE_FIRST), ACL_ERROR_RT_CONTEXT_NULL);
  EXPECT_STATUS(aclrtCreateStream(&stream), ACL_ERROR_RT_CONTEXT_NULL);
  EXPECT_STATUS(aclrtSynchronizeStream(nullptr), ACL_ERROR_RT_CONTEXT_NULL);
  EXPECT_STATUS(aclrtGetDevice(&device), ACL_ERROR_RT_CONTEXT_NULL);
  EXPECT_STATUS(aclrtSetDevice(1), ACL_ERROR_RT_INVALID_DEVICEID);
  EXPECT_STATUS(aclrtSetDevice(-1), ACL_ERROR_RT_INVALID_DEVICEID);
  EXPECT_STATUS(aclrtResetDevice(0), ACL_ERROR_RT_CONTEXT_NULL);
}

void runtime_nulls_and_stale_handles() {
  EXPECT_STATUS(aclInit(nullptr), ACL_ERROR_REPEAT_INITIALIZE);
  EXPECT_STATUS(aclrtCreateStream(nullptr), ACL_ERROR_INVALID_PARAM);
  EXPECT_STATUS(aclrtCreateEvent(nullptr), ACL_ERROR_INVALID_PARAM);
  EXPECT_STATUS(aclrtCreateContext(nullptr, 0), ACL_ERROR_INVALID_PARAM);
  EXPECT_STATUS(aclrtDestroyStream(nullptr), ACL_ERROR_INVALID_PARAM);
  EXPECT_STATUS(aclrtDestroyEvent(nullptr), ACL_ERROR_INVALID_PARAM);
  EXPECT_STATUS(aclrtLaunchHostFunc(nullptr, nullptr, nullptr), ACL_ERROR_INVALID_PARAM);
  EXPECT_STATUS(aclrtGetDeviceCount(nullptr), ACL_ERROR_INVALID_PARAM);
  EXPECT_STATUS(aclrtGetRunMode(nullptr), ACL_ERROR_INVALID_PARAM);
  EXPECT_STATUS(aclrtGetVersion(nullptr, nullptr, nullptr), ACL_ERROR_INVALID_PARAM);
  EXPECT_STATUS(aclrtGetMemInfo(ACL_HBM_MEM, nullptr, nullptr), ACL_ERROR_INVALID_PARAM);
  aclrtStream stream = nullptr;
  aclrtEvent event = nullptr;
  aclrtContext context = nullptr;
  EXPECT_OK(aclrtCreateStream(&stream));
  EXPECT_OK(aclrtCreateEvent(&event));
  EXPECT_OK(aclrtCreateContext(&context, 0));
  EXPECT_STATUS(aclrtSynchronizeStream(event), ACL_ERROR_RT_PARAM_INVALID);
  EXPECT_STATUS(aclrtRecordEvent(stream, stream), ACL_ERROR_RT_PARAM_INVALID);
  EXPECT_STATUS(aclrtSetCurrentContext(stream), ACL_ERROR_RT_PARAM_INVALID);
  EXPECT_STATUS(aclrtSetStreamFailureMode(stream, 2), ACL_ERROR_RT_PARAM_INVALID);
  EXPECT_STATUS(aclrtStreamQuery(stream, nullptr), ACL_ERROR_INVALID_PARAM);
  EXPECT_OK(aclrtStreamWaitEvent(stream, event));  // never recorded: nothing to wait for
  EXPECT_OK(aclrtDestroyContext(context));
  EXPECT_STATUS(aclrtDestroyContext(context), ACL_ERROR_RT_PARAM_INVALID);
  EXPECT_OK(aclrtGetCurrentContext(&context));
  EXPECT_STATUS(aclrtDestroyContext(context), ACL_ERROR_RT_PARAM_INVALID);
  EXPECT_OK(aclrtDestroyStream(stream));
  EXPECT_OK(aclrtDestroyEvent(event));
  EXPECT_STATUS(aclrtDestroyStream(stream), ACL_ERROR_RT_PARAM_INVALID);
  EXPECT_STATUS(aclrtDestroyEvent(event), ACL_ERROR_RT_PARAM_INVALID);
  EXPECT_STATUS(aclrtSynchronizeStream(stream), ACL_ERROR_RT_PARAM_INVALID);
  EXPECT_STATUS(aclrtSynchronizeEvent(event), ACL_ERROR_RT_PARAM_INVALID);
  for (uint64_t number : {uint64_t{1}, uint64_t{0x1000}, ~uint64_t{0}, uint64_t{0xA2} << 56}) {
    EXPECT_STATUS(aclrtSynchronizeStream(made_up<aclrtStream>(number)), ACL_ERROR_RT_PARAM_INVALID);
    EXPECT_STATUS(aclrtDestroyEvent(made_up<aclrtEvent>(number)), ACL_ERROR_RT_PARAM_INVALID);
    EXPECT_STATUS(aclrtFree(made_up<void*>(number)), ACL_ERROR_RT_PARAM_INVALID);
    EXPECT_STATUS(aclDestroyTensor(made_up<aclTensor*>(number)), ACLNN_ERR_PARAM_INVALID);
    EXPECT_STATUS(aclDestroyAclOpExecutor(made_up<aclOpExecutor*>(number)), ACLNN_ERR_PARAM_INVALID);
  }
}

void memory() {
  void *data = nullptr, *host = nullptr;
  char buffer[64] = {};
  EXPECT_STATUS(aclrtMalloc(nullptr, 8, ACL_MEM_MALLOC_HUGE_FIRST), ACL_ERROR_INVALID_PARAM);
  EXPECT_STATUS(aclrtMalloc(&data, 0, ACL_MEM_MALLOC_HUGE_FIRST), ACL_ERROR_INVALID_PARAM);
  EXPECT_STATUS(aclrtMalloc(&data, SIZE_MAX, ACL_MEM_MALLOC_HUGE_FIRST), ACL_ERROR_RT_MEMORY_ALLOCATION);
  EXPECT_STATUS(aclrtMalloc(&data, SIZE_MAX / 2, ACL_MEM_MALLOC_NORMAL_ONLY), ACL_ERROR_RT_MEMORY_ALLOCATION);
  EXPECT_STATUS(aclrtFree(nullptr), ACL_ERROR_INVALID_PARAM);
  EXPECT_STATUS(aclrtFree(buffer), ACL_ERROR_RT_PARAM_INVALID);
  EXPECT_OK(aclrtMalloc(&data, 100, ACL_MEM_MALLOC_NORMAL_ONLY));  // rounded up to 4096
  EXPECT_OK(aclrtMallocHost(&host, 100));
  EXPECT_STATUS(aclrtFreeHost(data), ACL_ERROR_RT_PARAM_INVALID);
  EXPECT_STATUS(aclrtFree(host), ACL_ERROR_RT_PARAM_INVALID);
  EXPECT_STATUS(aclrtFree(static_cast<char*>(data) + 64), ACL_ERROR_RT_PARAM_INVALID);
  EXPECT_STATUS(aclrtMemcpy(data, 4, buffer, 8, ACL_MEMCPY_HOST_TO_DEVICE), ACL_ERROR_INVALID_PARAM);
  EXPECT_STATUS(aclrtMemcpy(nullptr, 8, buffer, 8, ACL_MEMCPY_HOST_TO_DEVICE), ACL_ERROR_INVALID_PARAM);
  EXPECT_STATUS(aclrtMemcpy(data, 8, nullptr, 8, ACL_MEMCPY_HOST_TO_DEVICE), ACL_ERROR_INVALID_PARAM);
  EXPECT_STATUS(aclrtMemcpy(data, 8, buffer, 8, static_cast<aclrtMemcpyKind>(77)), ACL_ERROR_INVALID_PARAM);
  EXPECT_STATUS(aclrtMemcpy(buffer, 8, data, 8, ACL_MEMCPY_HOST_TO_DEVICE), ACL_ERROR_RT_PARAM_INVALID);
  EXPECT_STATUS(aclrtMemcpy(data, 8192, data, 8192, ACL_MEMCPY_DEVICE_TO_DEVICE), ACL_ERROR_RT_PARAM_INVALID);
  EXPECT_STATUS(aclrtMemset(data, 8192, 0, 8192), ACL_ERROR_RT_PARAM_INVALID);
  EXPECT_STATUS(aclrtMemset(nullptr, 8, 0, 8), ACL_ERROR_INVALID_PARAM);
  EXPECT_STATUS(aclrtMemcpy2d(data, 4, buffer, 8, 8, 2, ACL_MEMCPY_HOST_TO_DEVICE), ACL_ERROR_INVALID_PARAM);
  EXPECT_STATUS(aclrtMemcpy2d(data, SIZE_MAX / 2, buffer, SIZE_MAX / 2, 8, 4, ACL_MEMCPY_HOST_TO_DEVICE),
                ACL_ERROR_INVALID_PARAM);
  EXPECT_OK(aclrtMemcpy(data, 0, buffer, 0, ACL_MEMCPY_HOST_TO_DEVICE));
  EXPECT_OK(aclrtFree(data));
  EXPECT_STATUS(aclrtFree(data), ACL_ERROR_RT_PARAM_INVALID);
  EXPECT_STATUS(aclrtMemcpy(data, 8, buffer, 8, ACL_MEMCPY_HOST_TO_DEVICE), ACL_ERROR_RT_PARAM_INVALID);
  EXPECT_OK(aclrtFreeHost(host));
  EXPECT_STATUS(aclrtFreeHost(host), ACL_ERROR_RT_PARAM_INVALID);
}

void copies_of_rows() {
  void* data = nullptr;
  char from[32], to[32] = {};
  for (int i = 0; i < 32; ++i) from[i] = static_cast<char>(i);
  EXPECT_OK(aclrtMalloc(&data, 32, ACL_MEM_MALLOC_HUGE_FIRST));
  EXPECT_OK(aclrtMemset(data, 32, -1, 32));
  EXPECT_OK(aclrtMemcpy2d(data, 16, from, 8, 4, 2, ACL_MEMCPY_HOST_TO_DEVICE));
  EXPECT_OK(aclrtMemcpy(to, 32, data, 32, ACL_MEMCPY_DEVICE_TO_HOST));
  EXPECT(to[0] == 0 && to[3] == 3 && to[4] == -1 && to[16] == 8 && to[19] == 11 && to[20] == -1);
  EXPECT_OK(aclrtFree(data));
}

void tensors() {
  const int64_t shape[] = {2, 3}, negative[] = {2, -3}, deep[9] = {1, 1, 1, 1, 1, 1, 1, 1, 1};
  EXPECT(aclCreateTensor(nullptr, 2, ACL_FLOAT, nullptr, 0, ACL_FORMAT_ND, shape, 2, nullptr) == nullptr);
  EXPECT(last_error_has("null"));
  EXPECT(aclCreateTensor(shape, 2, ACL_FLOAT, nullptr, 0, ACL_FORMAT_ND, nullptr, 2, nullptr) == nullptr);
  EXPECT(aclCreateTensor(deep, 9, ACL_FLOAT, nullptr, 0, ACL_FORMAT_ND, deep, 9, nullptr) == nullptr);
  EXPECT(aclCreateTensor(shape, UINT64_MAX, ACL_FLOAT, nullptr, 0, ACL_FORMAT_ND, shape, 2, nullptr) == nullptr);
  EXPECT(aclCreateTensor(negative, 2, ACL_FLOAT, nullptr, 0, ACL_FORMAT_ND, negative, 2, nullptr) == nullptr);
  const int64_t strides[] = {1, 2};
  char memory[64];
  aclTensor* tensor = aclCreateTensor(shape, 2, ACL_BF16, strides, 5, ACL_FORMAT_ND, shape, 1, memory);
  EXPECT(tensor != nullptr);
  int64_t* dims = nullptr;
  uint64_t count = 0;
  EXPECT_OK(aclGetViewShape(tensor, &dims, &count));
  EXPECT(count == 2 && dims[0] == 2 && dims[1] == 3);
  delete[] dims;
  EXPECT_OK(aclGetViewStrides(tensor, &dims, &count));
  EXPECT(count == 2 && dims[0] == 1 && dims[1] == 2);
  delete[] dims;
  EXPECT_OK(aclGetStorageShape(tensor, &dims, &count));
  EXPECT(count == 1 && dims[0] == 2);
  delete[] dims;
  int64_t offset = 0;
  aclFormat format;
  aclDataType dtype;
  void* address = nullptr;
  EXPECT_OK(aclGetViewOffset(tensor, &offset));
  EXPECT_OK(aclGetFormat(tensor, &format));
  EXPECT_OK(aclGetDataType(tensor, &dtype));
  EXPECT_OK(aclGetRawTensorAddr(tensor, &address));
  EXPECT(offset == 5 && format == ACL_FORMAT_ND && dtype == ACL_BF16 && address == memory);
  EXPECT_OK(aclSetRawTensorAddr(tensor, memory + 8));
  EXPECT_OK(aclGetRawTensorAddr(tensor, &address));
  EXPECT(address == memory + 8);
  EXPECT_OK(aclInitTensor(tensor, shape, 1, ACL_INT8, nullptr, 0, ACL_FORMAT_NCHW, shape, 1, nullptr));
  EXPECT_OK(aclGetViewShape(tensor, &dims, &count));
  EXPECT(count == 1);
  delete[] dims;
  EXPECT_STATUS(aclGetViewShape(tensor, nullptr, &count), ACLNN_ERR_PARAM_NULLPTR);
  EXPECT_STATUS(aclGetDataType(tensor, nullptr), ACLNN_ERR_PARAM_NULLPTR);
  EXPECT_OK(aclDestroyTensor(tensor));
  EXPECT_STATUS(aclDestroyTensor(tensor), ACLNN_ERR_PARAM_INVALID);
  EXPECT(last_error_has("it was destroyed"));
  EXPECT_STATUS(aclGetDataType(tensor, &dtype), ACLNN_ERR_PARAM_INVALID);
  EXPECT_STATUS(aclSetRawTensorAddr(tensor, nullptr), ACLNN_ERR_PARAM_INVALID);
}

void arrays_and_lists() {
  const int64_t ints[] = {1, 2, 3};
  const float floats[] = {1.0f};
  const bool bools[] = {true, false};
  uint64_t size = 0;
  EXPECT(aclCreateIntArray(nullptr, 3) == nullptr);
  EXPECT(aclCreateIntArray(ints, UINT64_MAX) == nullptr);
  aclIntArray* array = aclCreateIntArray(ints, 3);
  EXPECT_OK(aclGetIntArraySize(array, &size));
  EXPECT(size == 3);
  EXPECT_STATUS(aclGetIntArraySize(array, nullptr), ACLNN_ERR_PARAM_NULLPTR);
  EXPECT_OK(aclDestroyIntArray(array));
  EXPECT_STATUS(aclDestroyIntArray(array), ACLNN_ERR_PARAM_INVALID);
  EXPECT_STATUS(aclGetIntArraySize(array, &size), ACLNN_ERR_PARAM_INVALID);
  aclFloatArray* float_array = aclCreateFloatArray(floats, 1);
  EXPECT_OK(aclGetFloatArraySize(float_array, &size));
  EXPECT(size == 1);
  EXPECT_OK(aclDestroyFloatArray(float_array));
  aclBoolArray* bool_array = aclCreateBoolArray(bools, 2);
  EXPECT_OK(aclGetBoolArraySize(bool_array, &size));
  EXPECT(size == 2);
  EXPECT_OK(aclDestroyBoolArray(bool_array));
  aclIntArray* empty = aclCreateIntArray(nullptr, 0);
  EXPECT_OK(aclGetIntArraySize(empty, &size));
  EXPECT(size == 0);
  EXPECT_OK(aclDestroyIntArray(empty));

  float value = 2.5f;
  EXPECT(aclCreateScalar(nullptr, ACL_FLOAT) == nullptr);
  EXPECT(aclCreateScalar(&value, ACL_STRING) == nullptr);
  aclScalar* scalar = aclCreateScalar(&value, ACL_FLOAT);
  EXPECT(scalar != nullptr);
  EXPECT_STATUS(aclDestroyTensor(reinterpret_cast<aclTensor*>(scalar)), ACLNN_ERR_PARAM_INVALID);
  const aclScalar* scalars[] = {scalar};
  aclScalarList* scalar_list = aclCreateScalarList(scalars, 1);
  EXPECT_OK(aclGetScalarListSize(scalar_list, &size));
  EXPECT(size == 1);
  EXPECT_OK(aclDestroyScalarList(scalar_list));
  EXPECT_STATUS(aclDestroyScalar(scalar), ACLNN_ERR_PARAM_INVALID);

  const aclTensor* tensors[] = {make_tensor({2}, ACL_FLOAT, nullptr), make_tensor({3}, ACL_FLOAT, nullptr)};
  aclTensorList* list = aclCreateTensorList(tensors, 2);
  EXPECT_OK(aclGetTensorListSize(list, &size));
  EXPECT(size == 2);
  EXPECT_OK(aclDestroyTensorList(list));  // and its members
  EXPECT_STATUS(aclDestroyTensor(tensors[0]), ACLNN_ERR_PARAM_INVALID);
  EXPECT(aclCreateTensorList(tensors, 2) == nullptr);
  const aclTensor* nulls[] = {nullptr};
  EXPECT(aclCreateTensorList(nulls, 1) == nullptr);
}

struct CastCall {
  Device<float> from{{4}, ACL_FLOAT, {1, 2, 3, 4}};
  Device<int32_t> to{{4}, ACL_INT32, {9, 9, 9, 9}};
  uint64_t size = 0;
  aclOpExecutor* executor = nullptr;

  int first() { return aclnnCastGetWorkspaceSize(from.tensor, ACL_INT32, to.tensor, &size, &executor); }
  bool untouched() { return to.read() == std::vector<int32_t>(4, 9); }
};

void executors() {
  CastCall call;
  EXPECT_STATUS(aclnnCast(nullptr, 0, nullptr, nullptr), ACLNN_ERR_PARAM_NULLPTR);
  EXPECT_STATUS(aclnnCast(nullptr, 0, made_up<aclOpExecutor*>(0x1234), nullptr), ACLNN_ERR_PARAM_INVALID);
  EXPECT_STATUS(aclnnCast(nullptr, 0, reinterpret_cast<aclOpExecutor*>(call.from.tensor), nullptr),
                ACLNN_ERR_PARAM_INVALID);
  EXPECT_STATUS(aclnnCastGetWorkspaceSize(nullptr, ACL_INT32, call.to.tensor, &call.size, &call.executor),
                ACLNN_ERR_PARAM_NULLPTR);
  EXPECT_STATUS(aclnnCastGetWorkspaceSize(call.from.tensor, ACL_INT32, nullptr, &call.size, &call.executor),
                ACLNN_ERR_PARAM_NULLPTR);
  EXPECT_STATUS(aclnnCastGetWorkspaceSize(call.from.tensor, ACL_INT32, call.to.tensor, nullptr, &call.executor),
                ACLNN_ERR_PARAM_NULLPTR);
  EXPECT_STATUS(aclnnCastGetWorkspaceSize(call.from.tensor, ACL_INT32, call.to.tensor, &call.size, nullptr),
                ACLNN_ERR_PARAM_NULLPTR);
  EXPECT_STATUS(aclnnCastGetWorkspaceSize(call.from.tensor, ACL_INT8, call.to.tensor, &call.size, &call.executor),
                ACLNN_ERR_PARAM_INVALID);
  EXPECT(last_error_has("dtype is int8, but out has dtype int32"));
  EXPECT(call.executor == nullptr);
  EXPECT_OK(call.first());
  EXPECT_STATUS(aclnnConvertWeightToINT4Pack(nullptr, 0, call.executor, nullptr), ACLNN_ERR_PARAM_INVALID);
  EXPECT(last_error_has("the executor was made for aclnnCast"));
  EXPECT_STATUS(aclnnCast(nullptr, 0, call.executor, made_up<aclrtStream>(0x77)), ACLNN_ERR_PARAM_INVALID);
  EXPECT(call.untouched());
  EXPECT_OK(aclnnCast(nullptr, 0, call.executor, nullptr));
  EXPECT_STATUS(aclnnCast(nullptr, 0, call.executor, nullptr), ACLNN_ERR_PARAM_INVALID);
  EXPECT_STATUS(aclDestroyAclOpExecutor(call.executor), ACLNN_ERR_PARAM_INVALID);
  EXPECT_STATUS(aclSetAclOpExecutorRepeatable(call.executor), ACLNN_ERR_PARAM_INVALID);
  EXPECT_OK(aclrtSynchronizeStream(nullptr));
  EXPECT(call.to.read() == std::vector<int32_t>({1, 2, 3, 4}));
  EXPECT_OK(call.first());
  EXPECT_OK(aclDestroyAclOpExecutor(call.executor));
  EXPECT_STATUS(aclnnCast(nullptr, 0, call.executor, nullptr), ACLNN_ERR_PARAM_INVALID);
}

// A format may name the axes, but blocks other than those of FRACTAL_NZ are not read as if they were ND.
void formats() {
  CastCall call;
  const int64_t shape[] = {4};
  const auto status_of = [&](int format) {
    aclTensor* tensor =
        aclCreateTensor(shape, 1, ACL_FLOAT, nullptr, 0, static_cast<aclFormat>(format), shape, 1, call.from.data);
    const int status = aclnnCastGetWorkspaceSize(tensor, ACL_INT32, call.to.tensor, &call.size, &call.executor);
    if (status == ACLNN_SUCCESS) EXPECT_OK(aclDestroyAclOpExecutor(call.executor));
    EXPECT_OK(aclDestroyTensor(tensor));
    return status;
  };
  for (int format : {ACL_FORMAT_ND, ACL_FORMAT_NC, ACL_FORMAT_NCL, ACL_FORMAT_NCHW, ACL_FORMAT_NHWC, ACL_FORMAT_HWCN,
                     ACL_FORMAT_NCDHW, ACL_FORMAT_NDHWC}) {
    EXPECT_OK(status_of(format));
  }
  for (int format : {int{ACL_FORMAT_UNDEFINED}, int{ACL_FORMAT_NC1HWC0}, int{ACL_FORMAT_FRACTAL_Z},
                     int{ACL_FORMAT_NC1HWC0_C04}, int{ACL_FORMAT_NDC1HWC0}, int{ACL_FRACTAL_Z_3D}, 5, 1000}) {
    EXPECT_STATUS(status_of(format), ACLNN_ERR_PARAM_INVALID);
    EXPECT(last_error_has("the format of self must be ND (2)"));
  }
}

// The document of this function takes no format but ND.
void formats_of_the_packer() {
  Device<int32_t> weight({2, 8}, ACL_INT32, std::vector<int32_t>(16, 1)), packed({2, 1}, ACL_INT32, {0, 0});
  const int64_t shapes[2][2] = {{2, 8}, {2, 1}};
  const auto named = [&](int i, void* data) {
    return aclCreateTensor(shapes[i], 2, ACL_INT32, nullptr, 0, ACL_FORMAT_NCHW, shapes[i], 2, data);
  };
  aclTensor *from = named(0, weight.data), *to = named(1, packed.data);
  uint64_t size = 0;
  aclOpExecutor* executor = nullptr;
  EXPECT_STATUS(aclnnConvertWeightToINT4PackGetWorkspaceSize(from, packed.tensor, &size, &executor),
                ACLNN_ERR_PARAM_INVALID);
  EXPECT(last_error_has("the format of weight must be ND (2) or FRACTAL_NZ (29), got 0"));
  EXPECT_STATUS(aclnnConvertWeightToINT4PackGetWorkspaceSize(weight.tensor, to, &size, &executor),
                ACLNN_ERR_PARAM_INVALID);
  EXPECT(last_error_has("the format of weightInt4Pack must be"));
  EXPECT_OK(aclDestroyTensor(from));
  EXPECT_OK(aclDestroyTensor(to));
}

void repeatable_executors() {
  CastCall call;
  EXPECT_OK(call.first());
  EXPECT_OK(aclSetAclOpExecutorRepeatable(call.executor));
  for (int i = 0; i < 3; ++i) EXPECT_OK(aclnnCast(nullptr, 0, call.executor, nullptr));
  Device<float> other({4}, ACL_FLOAT, {5, 6, 7, 8});
  Device<int32_t> elsewhere({4}, ACL_INT32, {0, 0, 0, 0});
  EXPECT_STATUS(aclSetTensorAddr(call.executor, 2, call.to.tensor, other.data), ACLNN_ERR_PARAM_INVALID);
  EXPECT_STATUS(aclSetTensorAddr(call.executor, 0, call.to.tensor, other.data), ACLNN_ERR_PARAM_INVALID);
  EXPECT_OK(aclSetTensorAddr(call.executor, 0, call.from.tensor, other.data));
  EXPECT_OK(aclSetOutputTensorAddr(call.executor, 0, call.to.tensor, elsewhere.data));
  EXPECT_OK(aclnnCast(nullptr, 0, call.executor, nullptr));
  EXPECT_OK(aclrtSynchronizeStream(nullptr));
  EXPECT(call.to.read() == std::vector<int32_t>({1, 2, 3, 4}));
  EXPECT(elsewhere.read() == std::vector<int32_t>({5, 6, 7, 8}));
  EXPECT_OK(aclSetInputTensorAddr(call.executor, 0, call.from.tensor, nullptr));
  EXPECT_STATUS(aclnnCast(nullptr, 0, call.executor, nullptr), ACLNN_ERR_PARAM_NULLPTR);
  EXPECT_OK(aclDestroyAclOpExecutor(call.executor));
  EXPECT_STATUS(aclDestroyAclOpExecutor(call.executor), ACLNN_ERR_PARAM_INVALID);
}

void addresses() {
  CastCall call;
  float host[4] = {1, 2, 3, 4};
  uint64_t size = 0;
  aclOpExecutor* executor = nullptr;
  void* gone = nullptr;
  EXPECT_OK(aclrtMalloc(&gone, 16, ACL_MEM_MALLOC_HUGE_FIRST));
  EXPECT_OK(aclrtFree(gone));
  const struct {
    void* data;
    int status;
  } wrong[] = {{nullptr, ACLNN_ERR_PARAM_NULLPTR}, {host, ACLNN_ERR_RUNTIME_ERROR}, {gone, ACLNN_ERR_RUNTIME_ERROR}};
  for (const auto& each : wrong) {
    aclTensor* tensor = make_tensor({4}, ACL_FLOAT, each.data);
    EXPECT_OK(aclnnCastGetWorkspaceSize(tensor, ACL_INT32, call.to.tensor, &size, &executor));
    EXPECT_STATUS(aclnnCast(nullptr, 0, executor, nullptr), each.status);
    EXPECT_OK(aclDestroyAclOpExecutor(executor));
    EXPECT_OK(aclDestroyTensor(tensor));
  }
  // Larger than its memory even after rounding up to 2 MiB.
  aclTensor *large = make_tensor({1 << 20}, ACL_FLOAT, call.from.data),
            *out = make_tensor({1 << 20}, ACL_INT8, call.to.data);
  EXPECT_OK(aclnnCastGetWorkspaceSize(large, ACL_INT8, out, &size, &executor));
  EXPECT_STATUS(aclnnCast(nullptr, 0, executor, nullptr), ACLNN_ERR_RUNTIME_ERROR);
  EXPECT_OK(aclDestroyAclOpExecutor(executor));
  EXPECT_OK(aclDestroyTensor(large));
  EXPECT_OK(aclDestroyTensor(out));
  // An address that no element can have.
  aclTensor* askew = make_tensor({4}, ACL_FLOAT, static_cast<char*>(call.from.data) + 2);
  EXPECT_OK(aclnnCastGetWorkspaceSize(askew, ACL_INT32, call.to.tensor, &size, &executor));
  EXPECT_STATUS(aclnnCast(nullptr, 0, executor, nullptr), ACLNN_ERR_PARAM_INVALID);
  EXPECT(last_error_has("must be a multiple of 4"));
  EXPECT_OK(aclDestroyAclOpExecutor(executor));
  EXPECT_OK(aclDestroyTensor(askew));
  // An output over an input of another size.
  aclTensor* over = make_tensor({4}, ACL_INT8, call.from.data);
  EXPECT_OK(aclnnCastGetWorkspaceSize(call.from.tensor, ACL_INT8, over, &size, &executor));
  EXPECT_STATUS(aclnnCast(nullptr, 0, executor, nullptr), ACLNN_ERR_PARAM_INVALID);
  EXPECT(last_error_has("shares memory"));
  EXPECT_OK(aclDestroyAclOpExecutor(executor));
  EXPECT_OK(aclDestroyTensor(over));
  EXPECT(call.untouched());
}

// In place, whatever the stride of an axis of one element is; another dtype of the same size too.
void in_place() {
  Device<float> values({1, 3}, ACL_FLOAT, {1.5f, 2.5f, -3.5f});
  const int64_t shape[] = {1, 3}, strides[] = {99, 1};
  aclTensor* to = aclCreateTensor(shape, 2, ACL_INT32, strides, 0, ACL_FORMAT_ND, shape, 2, values.data);
  uint64_t size = 0;
  aclOpExecutor* executor = nullptr;
  EXPECT_OK(aclnnCastGetWorkspaceSize(values.tensor, ACL_INT32, to, &size, &executor));
  EXPECT_OK(aclnnCast(nullptr, 0, executor, nullptr));
  EXPECT_OK(aclrtSynchronizeStream(nullptr));
  int32_t result[3] = {};
  EXPECT_OK(aclrtMemcpy(result, sizeof(result), values.data, sizeof(result), ACL_MEMCPY_DEVICE_TO_HOST));
  EXPECT(result[0] == 1 && result[1] == 2 && result[2] == -3);
  EXPECT_OK(aclDestroyTensor(to));
}

// Columns of the same rows lie between each other; only those that meet share memory.
void columns() {
  Device<float> rows({3, 4}, ACL_FLOAT, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12});
  const auto view = [&](int64_t first) {
    const int64_t shape[] = {3, 2}, strides[] = {4, 1}, storage[] = {3, 4};
    return aclCreateTensor(shape, 2, ACL_FLOAT, strides, first, ACL_FORMAT_ND, storage, 2, rows.data);
  };
  uint64_t size = 0;
  aclOpExecutor* executor = nullptr;
  aclTensor *from = view(0), *to = view(2), *between = view(1);
  EXPECT_OK(aclnnCastGetWorkspaceSize(from, ACL_FLOAT, between, &size, &executor));
  EXPECT_STATUS(aclnnCast(nullptr, 0, executor, nullptr), ACLNN_ERR_PARAM_INVALID);
  EXPECT(last_error_has("shares memory"));
  EXPECT_OK(aclDestroyAclOpExecutor(executor));
  EXPECT_OK(aclnnCastGetWorkspaceSize(from, ACL_FLOAT, to, &size, &executor));
  EXPECT_OK(aclnnCast(nullptr, 0, executor, nullptr));
  EXPECT_OK(aclrtSynchronizeStream(nullptr));
  EXPECT(rows.read() == (std::vector<float>{1, 2, 1, 2, 5, 6, 5, 6, 9, 10, 9, 10}));
  for (aclTensor* each : {from, to, between}) EXPECT_OK(aclDestroyTensor(each));
}

void workspaces() {
  Device<float> x({16, 32}, ACL_FLOAT, std::vector<float>(16 * 32, 1));
  Device<int8_t> weight({32, 16}, ACL_INT8, std::vector<int8_t>(32 * 16, 1));
  Device<float> scale({16}, ACL_FLOAT, std::vector<float>(16, 1)), y({16, 16}, ACL_FLOAT, std::vector<float>(256, 9));
  uint64_t size = 0;
  aclOpExecutor* executor = nullptr;
  const auto first = [&] {
    return aclnnWeightQuantBatchMatmulV2GetWorkspaceSize(x.tensor, weight.tensor, scale.tensor, nullptr, nullptr,
                                                         nullptr, nullptr, 0, y.tensor, &size, &executor);
  };
  EXPECT_OK(first());
  if (size > 0) {
    void* workspace = nullptr;
    std::vector<char> host(size);
    EXPECT_OK(aclrtMalloc(&workspace, size, ACL_MEM_MALLOC_HUGE_FIRST));
    EXPECT_STATUS(aclnnWeightQuantBatchMatmulV2(workspace, size - 1, executor, nullptr), ACLNN_ERR_PARAM_INVALID);
    EXPECT_STATUS(aclnnWeightQuantBatchMatmulV2(nullptr, 0, executor, nullptr), ACLNN_ERR_PARAM_INVALID);
    EXPECT_STATUS(aclnnWeightQuantBatchMatmulV2(host.data(), size, executor, nullptr), ACLNN_ERR_PARAM_INVALID);
    EXPECT(y.read() == std::vector<float>(256, 9));
    EXPECT_OK(aclnnWeightQuantBatchMatmulV2(workspace, size, executor, nullptr));
    EXPECT_OK(aclrtFree(workspace));  // still in use by the stream: released when it is done
    EXPECT_OK(aclrtSynchronizeStream(nullptr));
    EXPECT(y.read() == std::vector<float>(256, 32));
    EXPECT_OK(first());
    EXPECT_OK(aclrtMalloc(&workspace, size + 8, ACL_MEM_MALLOC_HUGE_FIRST));
    EXPECT_OK(aclrtMemset(y.data, y.bytes, 0, y.bytes));
    EXPECT_OK(aclnnWeightQuantBatchMatmulV2(static_cast<char*>(workspace) + 8, size, executor, nullptr));
    EXPECT_OK(aclrtSynchronizeStream(nullptr));
    EXPECT(y.read() == std::vector<float>(256, 32));
    EXPECT_OK(aclrtFree(workspace));
    EXPECT_OK(first());
  }
  EXPECT_OK(aclrtMemset(y.data, y.bytes, 0, y.bytes));
  EXPECT_OK(aclnnWeightQuantBatchMatmulV2(nullptr, size, executor, nullptr));  // the kernels bring their own
  EXPECT_OK(aclrtSynchronizeStream(nullptr));
  EXPECT(y.read() == std::vector<float>(256, 32));
}

void element_types() {
  EXPECT(aclDataTypeSize(ACL_FLOAT) == 4 && aclDataTypeSize(ACL_BF16) == 2 && aclDataTypeSize(ACL_COMPLEX128) == 16);
  EXPECT(aclDataTypeSize(ACL_FLOAT8_E4M3FN) == 1 && aclDataTypeSize(ACL_FLOAT4_E2M1) == 0);
  EXPECT(aclDataTypeSize(ACL_INT4) == 0 && aclDataTypeSize(static_cast<aclDataType>(1000)) == 0);
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<aclFloat16>(bits);
    const bool is_nan = (bits & 0x7C00) == 0x7C00 && (bits & 0x3FF) != 0;
    if (!is_nan) EXPECT(aclFloatToFloat16(aclFloat16ToFloat(half)) == half);
  }
  EXPECT(aclFloatToFloat16(65504.0f) == 0x7BFF && aclFloatToFloat16(65520.0f) == 0x7C00 &&
         aclFloatToFloat16(1e30f) == 0x7C00);
  EXPECT(aclFloatToFloat16(std::ldexp(1.0f, -25)) == 0 && aclFloatToFloat16(std::ldexp(1.5f, -25)) == 1 &&
         aclFloatToFloat16(-0.0f) == 0x8000);
  EXPECT(aclFloatToFloat16(1.0f + std::ldexp(1.0f, -11)) == 0x3C00 &&
         aclFloatToFloat16(1.0f + std::ldexp(3.0f, -11)) == 0x3C02);
}

void recent_errors() {
  aclGetRecentErrMsg();
  EXPECT(aclGetRecentErrMsg() == nullptr);
  aclDestroyTensor(nullptr);
  aclDestroyScalar(nullptr);
  const std::string text = aclGetRecentErrMsg();
  EXPECT(text.find("aclDestroyScalar") < text.find("aclDestroyTensor") &&
         text.find("aclDestroyTensor") != std::string::npos);
  EXPECT(aclGetRecentErrMsg() == nullptr);
  for (int i = 0; i < 1000; ++i) aclDestroyTensor(nullptr);
  EXPECT(std::strlen(aclGetRecentErrMsg()) < 4096);
}

}  // namespace

int main() {
  before_a_device_is_set();
  {
    Session session;
    runtime_nulls_and_stale_handles();
    memory();
    copies_of_rows();
    tensors();
    arrays_and_lists();
    executors();
    formats();
    formats_of_the_packer();
    repeatable_executors();
    addresses();
    in_place();
    columns();
    workspaces();
    element_types();
    recent_errors();
  }
  std::puts("ok");
  return 0;
}
