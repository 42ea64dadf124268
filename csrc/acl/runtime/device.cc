// SPDX-License-Identifier: Apache-2.0
// Start and stop, the one device, contexts, versions.
#include "acl/runtime/device.h"

#include <atomic>
#include <cstdlib>

#include "acl/acl.h"
#include "acl/runtime/stream.h"

namespace anynpu::acl {
namespace {

constexpr int32_t kDevices = 1;

std::atomic<bool> initialised{false};
std::atomic<int32_t> device_users{0};
std::atomic<int32_t> context_count{0};

struct Context : Object {};

HandleTable<Context>& contexts() { return handle_table<Context, Kind::context>("aclrtContext"); }

// The context that aclrtSetDevice stands for.
aclrtContext default_context() {
  static const aclrtContext handle = contexts().add<aclrtContext>(std::make_shared<Context>());
  return handle;
}

thread_local aclrtContext current = nullptr;

int32_t check_device(const char* call, int32_t device) {
  if (device >= 0 && device < kDevices) return ACL_SUCCESS;
  return report(ACL_ERROR_RT_INVALID_DEVICEID, "%s: deviceId must be in [0, %d], got %d", call, kDevices - 1, device);
}

aclrtContext current_context() {
  if (current != nullptr && (current != default_context() || device_users > 0)) return current;
  return device_users > 0 ? default_context() : nullptr;
}

void find_leaks() {
  contexts().for_each([unowned = contexts().find(default_context())](const std::shared_ptr<Context>& context) {
    if (context != unowned) {
      check::add({"leaked-context", "", "aclrtContext never destroyed", context->created, nullptr});
    }
  });
}

[[maybe_unused]] const bool registered = (check::on_report(find_leaks), true);

}  // namespace

bool has_device() { return device_users > 0 || context_count > 0; }

}  // namespace anynpu::acl

using namespace anynpu::acl;

extern "C" aclError aclInit(const char*) {
  if (!initialised.exchange(true)) return ACL_SUCCESS;
  return report(ACL_ERROR_REPEAT_INITIALIZE, "aclInit: called before, without aclFinalize since");
}

extern "C" aclError aclFinalize(void) {
  return guarded("aclFinalize", [&]() -> int32_t {
    if (!initialised.exchange(false)) return report(ACL_ERROR_UNINITIALIZE, "aclFinalize: aclInit was not called");
    wait_for_all(-1);
    return ACL_SUCCESS;
  });
}

extern "C" aclError aclrtGetVersion(int32_t* majorVersion, int32_t* minorVersion, int32_t* patchVersion) {
  if (majorVersion == nullptr || minorVersion == nullptr || patchVersion == nullptr) {
    return report(ACL_ERROR_INVALID_PARAM, "aclrtGetVersion: a pointer is null");
  }
  *majorVersion = 1;
  *minorVersion = 0;
  *patchVersion = 0;
  return ACL_SUCCESS;
}

extern "C" const char* aclrtGetSocName(void) {
  const char* name = std::getenv("ANYNPU_SOC");
  return name != nullptr && *name != '\0' ? name : "Ascend910B";
}

extern "C" aclError aclrtGetRunMode(aclrtRunMode* runMode) {
  if (runMode == nullptr) return report(ACL_ERROR_INVALID_PARAM, "aclrtGetRunMode: runMode is a null pointer");
  *runMode = ACL_HOST;
  return ACL_SUCCESS;
}

extern "C" aclError aclrtSetDevice(int32_t deviceId) {
  return guarded("aclrtSetDevice", [&]() -> int32_t {
    if (const int32_t status = check_device("aclrtSetDevice", deviceId)) return status;
    current = default_context();
    ++device_users;
    return ACL_SUCCESS;
  });
}

extern "C" aclError aclrtResetDevice(int32_t deviceId) {
  return guarded("aclrtResetDevice", [&]() -> int32_t {
    if (const int32_t status = check_device("aclrtResetDevice", deviceId)) return status;
    int32_t users = device_users.load();
    while (users > 0 && !device_users.compare_exchange_weak(users, users - 1)) {
    }
    if (users == 0) return report(ACL_ERROR_RT_CONTEXT_NULL, "aclrtResetDevice: the device was not set");
    wait_for_all(-1);
    return ACL_SUCCESS;
  });
}

extern "C" aclError aclrtGetDevice(int32_t* deviceId) {
  return guarded("aclrtGetDevice", [&]() -> int32_t {
    if (deviceId == nullptr) return report(ACL_ERROR_INVALID_PARAM, "aclrtGetDevice: deviceId is a null pointer");
    if (current_context() == nullptr) return report(ACL_ERROR_RT_CONTEXT_NULL, "aclrtGetDevice: no device is set");
    *deviceId = 0;
    return ACL_SUCCESS;
  });
}

extern "C" aclError aclrtGetDeviceCount(uint32_t* count) {
  if (count == nullptr) return report(ACL_ERROR_INVALID_PARAM, "aclrtGetDeviceCount: count is a null pointer");
  *count = kDevices;
  return ACL_SUCCESS;
}

extern "C" aclError aclrtCreateContext(aclrtContext* context, int32_t deviceId) {
  return guarded("aclrtCreateContext", [&]() -> int32_t {
    if (context == nullptr) return report(ACL_ERROR_INVALID_PARAM, "aclrtCreateContext: context is a null pointer");
    if (const int32_t status = check_device("aclrtCreateContext", deviceId)) return status;
    *context = contexts().add<aclrtContext>(std::make_shared<Context>());
    ++context_count;
    current = *context;
    return ACL_SUCCESS;
  });
}

extern "C" aclError aclrtDestroyContext(aclrtContext context) {
  return guarded("aclrtDestroyContext", [&]() -> int32_t {
    if (context != nullptr && context == default_context()) {
      return report(ACL_ERROR_RT_PARAM_INVALID, "aclrtDestroyContext: the default context ends with aclrtResetDevice");
    }
    const int32_t status = contexts().remove("aclrtDestroyContext", "context", context, ACL_ERROR_INVALID_PARAM,
                                             ACL_ERROR_RT_PARAM_INVALID);
    if (status != ACL_SUCCESS) return status;
    wait_for_all(-1);
    --context_count;
    if (current == context) current = nullptr;
    return ACL_SUCCESS;
  });
}

extern "C" aclError aclrtSetCurrentContext(aclrtContext context) {
  return guarded("aclrtSetCurrentContext", [&]() -> int32_t {
    std::shared_ptr<Context> found;
    const int32_t status = contexts().get("aclrtSetCurrentContext", "context", context, ACL_ERROR_INVALID_PARAM,
                                          ACL_ERROR_RT_PARAM_INVALID, &found);
    if (status == ACL_SUCCESS) current = context;
    return status;
  });
}

extern "C" aclError aclrtGetCurrentContext(aclrtContext* context) {
  return guarded("aclrtGetCurrentContext", [&]() -> int32_t {
    if (context == nullptr) return report(ACL_ERROR_INVALID_PARAM, "aclrtGetCurrentContext: context is a null pointer");
    const aclrtContext found = current_context();
    if (found == nullptr) return report(ACL_ERROR_RT_CONTEXT_NULL, "aclrtGetCurrentContext: no context is set");
    *context = found;
    return ACL_SUCCESS;
  });
}
