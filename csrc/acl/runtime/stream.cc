// SPDX-License-Identifier: Apache-2.0
#include "acl/runtime/stream.h"

#include <utility>
#include <vector>

#include "acl/runtime/device.h"

namespace anynpu::acl {
namespace {

HandleTable<Stream>& streams() { return handle_table<Stream, Kind::stream>("aclrtStream"); }

std::mutex default_mutex;
StreamPtr& default_stream() {
  static auto* stream = new StreamPtr;
  return *stream;
}

std::atomic<uint64_t> stream_count{0};
std::atomic<int64_t> in_flight{0};

std::vector<StreamPtr> all_streams() {
  std::vector<StreamPtr> all;
  streams().for_each([&](const StreamPtr& stream) { all.push_back(stream); });
  std::lock_guard<std::mutex> lock(default_mutex);
  if (default_stream()) all.push_back(default_stream());
  return all;
}

void find_leaks() {
  streams().for_each([](const StreamPtr& stream) {
    check::add({"leaked-stream", "", "aclrtStream never destroyed", stream->created, nullptr});
  });
}

[[maybe_unused]] const bool registered = (check::on_report(find_leaks), true);

Failure perform(const Work& work) {
  try {
    return work();
  } catch (const std::bad_alloc&) {
    return {ACL_ERROR_BAD_ALLOC, "no memory"};
  }
}

int32_t synchronize(const char* call, aclrtStream handle, int32_t timeout_ms) {
  StreamPtr stream;
  if (const int32_t status = get_stream(call, handle, &stream)) return status;
  if (stream->on_worker()) return report(ACL_ERROR_RT_PARAM_INVALID, "%s: called by the stream's own work", call);
  uint64_t sequence = 0;
  if (!stream->wait(timeout_ms, &sequence)) {
    return report(ACL_ERROR_RT_STREAM_SYNC_TIMEOUT, "%s: not done after %d ms", call, timeout_ms);
  }
  if (check::enabled) check::host_waited_for_stream(stream->id(), sequence);
  const Failure failure = stream->take_failure();
  return failure.status == ACL_SUCCESS ? ACL_SUCCESS : report(failure);
}

int32_t create(const char* call, aclrtStream* stream) {
  if (stream == nullptr) return report(ACL_ERROR_INVALID_PARAM, "%s: the address of the stream is null", call);
  if (!has_device()) {
    return report(ACL_ERROR_RT_CONTEXT_NULL, "%s: no device is set; call aclrtSetDevice first", call);
  }
  *stream = streams().add<aclrtStream>(std::make_shared<Stream>());
  return ACL_SUCCESS;
}

int32_t destroy(const char* call, aclrtStream handle) {
  const StreamPtr stream = streams().find(handle);
  if (stream && stream->on_worker()) {
    return report(ACL_ERROR_RT_PARAM_INVALID, "%s: called by the stream's own work", call);
  }
  StreamPtr removed;
  const int32_t status =
      streams().remove(call, "stream", handle, ACL_ERROR_INVALID_PARAM, ACL_ERROR_RT_PARAM_INVALID, &removed);
  if (status == ACL_SUCCESS) removed->wait(-1);
  return status;
}

}  // namespace

Stream::Stream() : id_(++stream_count), worker_([this] { run(); }) {}

Stream::~Stream() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    closing_ = true;
  }
  arrived_.notify_one();
  if (on_worker()) {
    worker_.detach();
  } else {
    worker_.join();
  }
}

uint64_t Stream::submit(Work work, bool always) {
  std::unique_lock<std::mutex> lock(mutex_);
  queue_.push_back({std::move(work), always});
  in_flight.fetch_add(1, std::memory_order_relaxed);
  const uint64_t sequence = ++submitted_;
  const bool wake = sleeping_;
  lock.unlock();
  if (wake) arrived_.notify_one();
  return sequence;
}

void Stream::run() {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    sleeping_ = true;
    arrived_.wait(lock, [this] { return closing_ || !queue_.empty(); });
    sleeping_ = false;
    if (queue_.empty()) return;
    Item item = std::move(queue_.front());
    queue_.pop_front();
    const bool skip = !item.always && failure_.status != ACL_SUCCESS && stop_on_failure_;
    lock.unlock();
    Failure failure;
    if (!skip) failure = perform(item.work);
    item.work = nullptr;  // lets go of memory before the work counts as done
    lock.lock();
    if (failure_.status == ACL_SUCCESS) failure_ = std::move(failure);
    ++completed_;
    in_flight.fetch_sub(1, std::memory_order_release);
    if (waiting_ > 0) finished_.notify_all();
  }
}

bool Stream::wait(int32_t timeout_ms, uint64_t* sequence) {
  std::unique_lock<std::mutex> lock(mutex_);
  const uint64_t target = submitted_;
  if (sequence != nullptr) *sequence = target;
  const auto done = [&] { return completed_ >= target; };
  if (done()) return true;
  ++waiting_;
  bool in_time = true;
  if (timeout_ms < 0) {
    finished_.wait(lock, done);
  } else {
    in_time = finished_.wait_for(lock, std::chrono::milliseconds(timeout_ms), done);
  }
  --waiting_;
  return in_time;
}

Failure Stream::take_failure() {
  std::lock_guard<std::mutex> lock(mutex_);
  return std::exchange(failure_, Failure{});
}

int32_t get_stream(const char* call, aclrtStream handle, StreamPtr* stream) {
  if (handle != nullptr) {
    return streams().get(call, "stream", handle, ACL_ERROR_INVALID_PARAM, ACL_ERROR_RT_PARAM_INVALID, stream);
  }
  if (!has_device()) return report(ACL_ERROR_RT_CONTEXT_NULL, "%s: no device is set for the default stream", call);
  std::lock_guard<std::mutex> lock(default_mutex);
  if (!default_stream()) default_stream() = std::make_shared<Stream>();
  *stream = default_stream();
  return ACL_SUCCESS;
}

bool wait_for_all(int32_t timeout_ms) {
  if (in_flight.load(std::memory_order_acquire) == 0) return true;
  const auto start = std::chrono::steady_clock::now();
  for (const StreamPtr& stream : all_streams()) {
    if (stream->on_worker()) continue;
    const auto spent = std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now() - start);
    const auto left = timeout_ms < 0 ? -1 : std::max<int64_t>(0, timeout_ms - spent.count());
    if (!stream->wait(static_cast<int32_t>(left))) return false;
  }
  return true;
}

int32_t report_failures(const char* call) {
  int32_t first = ACL_SUCCESS;
  for (const StreamPtr& stream : all_streams()) {
    const Failure failure = stream->take_failure();
    if (failure.status == ACL_SUCCESS) continue;
    report({failure.status, std::string(call) + ": " + failure.text});
    if (first == ACL_SUCCESS) first = failure.status;
  }
  return first;
}

}  // namespace anynpu::acl

using namespace anynpu::acl;

extern "C" aclError aclrtCreateStream(aclrtStream* stream) {
  return guarded("aclrtCreateStream", [&] { return create("aclrtCreateStream", stream); });
}

extern "C" aclError aclrtCreateStreamWithConfig(aclrtStream* stream, uint32_t, uint32_t) {
  return guarded("aclrtCreateStreamWithConfig", [&] { return create("aclrtCreateStreamWithConfig", stream); });
}

extern "C" aclError aclrtDestroyStream(aclrtStream stream) {
  return guarded("aclrtDestroyStream", [&] { return destroy("aclrtDestroyStream", stream); });
}

extern "C" aclError aclrtDestroyStreamForce(aclrtStream stream) {
  return guarded("aclrtDestroyStreamForce", [&] { return destroy("aclrtDestroyStreamForce", stream); });
}

extern "C" aclError aclrtSetStreamFailureMode(aclrtStream stream, uint64_t mode) {
  return guarded("aclrtSetStreamFailureMode", [&]() -> int32_t {
    StreamPtr found;
    if (const int32_t status = get_stream("aclrtSetStreamFailureMode", stream, &found)) return status;
    if (mode > ACL_STOP_ON_FAILURE) {
      return report(ACL_ERROR_RT_PARAM_INVALID, "aclrtSetStreamFailureMode: mode must be 0 or 1, got %llu",
                    static_cast<unsigned long long>(mode));
    }
    found->stop_on_failure(mode == ACL_STOP_ON_FAILURE);
    return ACL_SUCCESS;
  });
}

extern "C" aclError aclrtSynchronizeStream(aclrtStream stream) {
  return guarded("aclrtSynchronizeStream", [&] { return synchronize("aclrtSynchronizeStream", stream, -1); });
}

extern "C" aclError aclrtSynchronizeStreamWithTimeout(aclrtStream stream, int32_t timeout) {
  return guarded("aclrtSynchronizeStreamWithTimeout",
                 [&] { return synchronize("aclrtSynchronizeStreamWithTimeout", stream, timeout); });
}

extern "C" aclError aclrtStreamQuery(aclrtStream stream, aclrtStreamStatus* status) {
  return guarded("aclrtStreamQuery", [&]() -> int32_t {
    if (status == nullptr) return report(ACL_ERROR_INVALID_PARAM, "aclrtStreamQuery: status is a null pointer");
    StreamPtr found;
    if (const int32_t error = get_stream("aclrtStreamQuery", stream, &found)) return error;
    uint64_t sequence = 0;
    const bool done = found->wait(0, &sequence);
    if (done && check::enabled) check::host_waited_for_stream(found->id(), sequence);
    *status = done ? ACL_STREAM_STATUS_COMPLETE : ACL_STREAM_STATUS_NOT_READY;
    return ACL_SUCCESS;
  });
}

extern "C" aclError aclrtLaunchHostFunc(aclrtStream stream, aclrtHostFunc fn, void* args) {
  return guarded("aclrtLaunchHostFunc", [&]() -> int32_t {
    if (fn == nullptr) return report(ACL_ERROR_INVALID_PARAM, "aclrtLaunchHostFunc: fn is a null pointer");
    StreamPtr found;
    if (const int32_t status = get_stream("aclrtLaunchHostFunc", stream, &found)) return status;
    found->submit([fn, args] {
      fn(args);
      return Failure{};
    });
    return ACL_SUCCESS;
  });
}

extern "C" aclError aclrtSynchronizeDeviceWithTimeout(int32_t timeout) {
  constexpr const char* call = "aclrtSynchronizeDevice";
  return guarded(call, [&]() -> int32_t {
    if (!has_device()) return report(ACL_ERROR_RT_CONTEXT_NULL, "%s: no device is set", call);
    if (!wait_for_all(timeout)) {
      return report(ACL_ERROR_RT_STREAM_SYNC_TIMEOUT, "%s: not done after %d ms", call, timeout);
    }
    if (check::enabled) check::host_waited_for_all();
    return report_failures(call);
  });
}

extern "C" aclError aclrtSynchronizeDevice(void) { return aclrtSynchronizeDeviceWithTimeout(-1); }
