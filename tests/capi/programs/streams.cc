// SPDX-License-Identifier: Apache-2.0
// Streams and events: launches return before the work is done, order is kept, streams overlap, events order them.
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "aclnnop/aclnn_cast.h"
#include "aclnnop/aclnn_convert_weight_to_int4_pack.h"
#include "harness.h"

namespace {

// Work on a stream that lasts until the test opens it.
struct Gate {
  std::mutex mutex;
  std::condition_variable changed;
  bool open = false, reached = false;

  static void pass(void* self) {
    auto& gate = *static_cast<Gate*>(self);
    std::unique_lock<std::mutex> lock(gate.mutex);
    gate.reached = true;
    gate.changed.notify_all();
    gate.changed.wait(lock, [&] { return gate.open; });
  }
  void open_up() {
    std::lock_guard<std::mutex> lock(mutex);
    open = true;
    changed.notify_all();
  }
  bool reached_within(int ms) {
    std::unique_lock<std::mutex> lock(mutex);
    return changed.wait_for(lock, std::chrono::milliseconds(ms), [&] { return reached; });
  }
};

void cast(const aclTensor* from, aclDataType dtype, aclTensor* to, aclrtStream stream) {
  uint64_t size = 0;
  aclOpExecutor* executor = nullptr;
  EXPECT_OK(aclnnCastGetWorkspaceSize(from, dtype, to, &size, &executor));
  EXPECT_OK(aclnnCast(nullptr, size, executor, stream));
}

aclrtStream new_stream() {
  aclrtStream stream = nullptr;
  EXPECT_OK(aclrtCreateStream(&stream));
  return stream;
}

aclrtStreamStatus status_of(aclrtStream stream) {
  aclrtStreamStatus status = ACL_STREAM_STATUS_RESERVED;
  EXPECT_OK(aclrtStreamQuery(stream, &status));
  return status;
}

void launch_returns_before_the_work_is_done() {
  Device<float> from({4}, ACL_FLOAT, {1.5f, 2.5f, -3.5f, 4.5f});
  Device<int32_t> to({4}, ACL_INT32, {9, 9, 9, 9});
  const aclrtStream stream = new_stream();
  Gate gate;
  EXPECT_OK(aclrtLaunchHostFunc(stream, Gate::pass, &gate));
  cast(from.tensor, ACL_INT32, to.tensor, stream);
  EXPECT(status_of(stream) == ACL_STREAM_STATUS_NOT_READY);
  EXPECT_STATUS(aclrtSynchronizeStreamWithTimeout(stream, 20), ACL_ERROR_RT_STREAM_SYNC_TIMEOUT);
  EXPECT(*static_cast<int32_t*>(to.data) == 9);
  gate.open_up();
  EXPECT_OK(aclrtSynchronizeStream(stream));
  EXPECT(status_of(stream) == ACL_STREAM_STATUS_COMPLETE);
  EXPECT(to.read() == std::vector<int32_t>({1, 2, -3, 4}));
  EXPECT_OK(aclrtDestroyStream(stream));
}

void order_is_kept() {
  struct Log {
    std::vector<int> seen;
    int next = 0;
    static void append(void* self) {
      auto& log = *static_cast<Log*>(self);
      log.seen.push_back(log.next++);
    }
  } log;
  const aclrtStream stream = new_stream();
  Device<int32_t> a({1}, ACL_INT32, {7}), c({1}, ACL_INT32, {0});
  Device<float> b({1}, ACL_FLOAT, {0});
  for (int i = 0; i < 300; ++i) {
    EXPECT_OK(aclrtLaunchHostFunc(stream, Log::append, &log));
    cast(a.tensor, ACL_FLOAT, b.tensor, stream);
    cast(b.tensor, ACL_INT32, c.tensor, stream);
    EXPECT_OK(aclrtMemcpyAsync(a.data, a.bytes, c.data, c.bytes, ACL_MEMCPY_DEVICE_TO_DEVICE, stream));
  }
  EXPECT_OK(aclrtSynchronizeStream(stream));
  EXPECT(log.seen.size() == 300);
  for (int i = 0; i < 300; ++i) EXPECT(log.seen[i] == i);
  EXPECT(a.read()[0] == 7);
  EXPECT_OK(aclrtDestroyStream(stream));
}

void two_streams_overlap() {
  const aclrtStream first = new_stream(), second = new_stream();
  Gate one, two;
  EXPECT_OK(aclrtLaunchHostFunc(first, Gate::pass, &one));
  EXPECT_OK(aclrtLaunchHostFunc(second, Gate::pass, &two));
  EXPECT(one.reached_within(10000));
  EXPECT(two.reached_within(10000));
  two.open_up();
  EXPECT_OK(aclrtSynchronizeStream(second));
  EXPECT(status_of(first) == ACL_STREAM_STATUS_NOT_READY);
  one.open_up();
  EXPECT_OK(aclrtSynchronizeDevice());
  EXPECT_OK(aclrtDestroyStream(first));
  EXPECT_OK(aclrtDestroyStream(second));
}

void events_order_across_streams() {
  Device<int32_t> a({1}, ACL_INT32, {5}), c({1}, ACL_INT32, {0});
  Device<float> b({1}, ACL_FLOAT, {0});
  const aclrtStream producer = new_stream(), consumer = new_stream();
  aclrtEvent before = nullptr, after = nullptr;
  EXPECT_OK(aclrtCreateEvent(&before));
  EXPECT_OK(aclrtCreateEventWithFlag(&after, ACL_EVENT_SYNC));
  aclrtEventRecordedStatus status;
  EXPECT_OK(aclrtQueryEventStatus(after, &status));
  EXPECT(status == ACL_EVENT_RECORDED_STATUS_NOT_READY);
  Gate gate;
  EXPECT_OK(aclrtRecordEvent(before, producer));
  EXPECT_OK(aclrtLaunchHostFunc(producer, Gate::pass, &gate));
  cast(a.tensor, ACL_FLOAT, b.tensor, producer);
  EXPECT_OK(aclrtRecordEvent(after, producer));
  EXPECT_OK(aclrtStreamWaitEvent(consumer, after));
  cast(b.tensor, ACL_INT32, c.tensor, consumer);
  EXPECT(gate.reached_within(10000));
  EXPECT_STATUS(aclrtSynchronizeStreamWithTimeout(consumer, 30), ACL_ERROR_RT_STREAM_SYNC_TIMEOUT);
  EXPECT_STATUS(aclrtSynchronizeEventWithTimeout(after, 1), ACL_ERROR_RT_EVENT_SYNC_TIMEOUT);
  EXPECT_OK(aclrtQueryEventStatus(after, &status));
  EXPECT(status == ACL_EVENT_RECORDED_STATUS_NOT_READY);
  aclrtEventWaitStatus waiting;
  EXPECT_OK(aclrtQueryEventWaitStatus(after, &waiting));
  EXPECT(waiting == ACL_EVENT_WAIT_STATUS_NOT_READY);
  float ms = 0;
  EXPECT_STATUS(aclrtEventElapsedTime(&ms, before, after), ACL_ERROR_RT_EVENT_TIMESTAMP_INVALID);
  gate.open_up();
  EXPECT_OK(aclrtSynchronizeEvent(after));
  EXPECT_OK(aclrtSynchronizeStream(consumer));
  EXPECT(c.read()[0] == 5);
  EXPECT_OK(aclrtQueryEventStatus(after, &status));
  EXPECT(status == ACL_EVENT_RECORDED_STATUS_COMPLETE);
  EXPECT_OK(aclrtQueryEventWaitStatus(after, &waiting));
  EXPECT(waiting == ACL_EVENT_WAIT_STATUS_COMPLETE);
  EXPECT_OK(aclrtEventElapsedTime(&ms, before, after));
  EXPECT(ms >= 30.0f && ms < 60000.0f);
  EXPECT_OK(aclrtDestroyEvent(before));
  EXPECT_OK(aclrtDestroyEvent(after));
  EXPECT_OK(aclrtDestroyStream(producer));
  EXPECT_OK(aclrtDestroyStream(consumer));
}

void a_synchronous_copy_waits_for_the_device() {
  Device<float> from({1}, ACL_FLOAT, {42.0f});
  Device<int32_t> to({1}, ACL_INT32, {0});
  const aclrtStream stream = new_stream();
  Gate gate;
  EXPECT_OK(aclrtLaunchHostFunc(stream, Gate::pass, &gate));
  cast(from.tensor, ACL_INT32, to.tensor, stream);
  std::thread opener([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    gate.open_up();
  });
  EXPECT(to.read()[0] == 42);
  opener.join();
  EXPECT_OK(aclrtDestroyStream(stream));
}

void an_error_in_the_work_reaches_the_next_synchronisation() {
  Device<int32_t> weight({1, 8}, ACL_INT32, {0, 1, 2, 3, 4, 5, 6, 8});
  Device<int32_t> packed({1, 1}, ACL_INT32, {77});
  const aclrtStream stream = new_stream();
  uint64_t size = 0;
  aclOpExecutor* executor = nullptr;
  EXPECT_OK(aclnnConvertWeightToINT4PackGetWorkspaceSize(weight.tensor, packed.tensor, &size, &executor));
  EXPECT_OK(aclnnConvertWeightToINT4Pack(nullptr, size, executor, stream));
  EXPECT_STATUS(aclrtSynchronizeStream(stream), ACLNN_ERR_RUNTIME_ERROR);
  EXPECT(last_error_has("got 8 at [0, 7]"));
  EXPECT(aclGetRecentErrMsg() == nullptr);
  EXPECT_OK(aclrtSynchronizeStream(stream));
  EXPECT(packed.read()[0] == 77);

  // After a failure a stream goes on, unless it was told to stop.
  Device<float> from({1}, ACL_FLOAT, {3.0f});
  Device<int32_t> to({1}, ACL_INT32, {0});
  for (const bool stop : {false, true}) {
    EXPECT_OK(aclrtSetStreamFailureMode(stream, stop ? ACL_STOP_ON_FAILURE : ACL_CONTINUE_ON_FAILURE));
    EXPECT_OK(aclrtMemset(to.data, to.bytes, 0, to.bytes));
    EXPECT_OK(aclnnConvertWeightToINT4PackGetWorkspaceSize(weight.tensor, packed.tensor, &size, &executor));
    EXPECT_OK(aclnnConvertWeightToINT4Pack(nullptr, size, executor, stream));
    cast(from.tensor, ACL_INT32, to.tensor, stream);
    EXPECT_STATUS(aclrtSynchronizeDevice(), ACLNN_ERR_RUNTIME_ERROR);
    EXPECT(to.read()[0] == (stop ? 0 : 3));
  }
  EXPECT_OK(aclrtDestroyStream(stream));
}

void work_outlives_what_it_was_given() {
  const aclrtStream stream = new_stream();
  Device<int32_t> to({1024}, ACL_INT32, std::vector<int32_t>(1024, 0));
  Gate gate;
  {
    Device<float> from({1024}, ACL_FLOAT, std::vector<float>(1024, 6.0f));
    EXPECT_OK(aclrtLaunchHostFunc(stream, Gate::pass, &gate));
    uint64_t size = 0;
    aclOpExecutor* executor = nullptr;
    aclTensor* out = make_tensor({1024}, ACL_INT32, to.data);
    EXPECT_OK(aclnnCastGetWorkspaceSize(from.tensor, ACL_INT32, out, &size, &executor));
    EXPECT_OK(aclDestroyTensor(out));
    EXPECT_OK(aclnnCast(nullptr, size, executor, stream));
  }  // tensor destroyed, memory freed
  std::thread opener([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    gate.open_up();
  });
  EXPECT_OK(aclrtDestroyStream(stream));  // waits for the work
  opener.join();
  EXPECT(to.read() == std::vector<int32_t>(1024, 6));
}

void many_threads_share_streams() {
  const aclrtStream shared = new_stream();
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([shared, t] {
      const aclrtStream own = new_stream();
      Device<float> from({64}, ACL_FLOAT, std::vector<float>(64, static_cast<float>(t)));
      Device<int32_t> to({64}, ACL_INT32, std::vector<int32_t>(64, -1)), other({64}, ACL_INT32, to.read());
      for (int i = 0; i < 100; ++i) {
        cast(from.tensor, ACL_INT32, i % 2 ? other.tensor : to.tensor, i % 2 ? shared : own);
      }
      EXPECT_OK(aclrtSynchronizeStream(shared));
      EXPECT_OK(aclrtSynchronizeStream(own));
      EXPECT(to.read() == std::vector<int32_t>(64, t) && other.read() == to.read());
      EXPECT(aclDestroyTensor(nullptr) == ACLNN_ERR_PARAM_NULLPTR);
      EXPECT(last_error_has("aclDestroyTensor"));
      EXPECT_OK(aclrtDestroyStream(own));
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_OK(aclrtDestroyStream(shared));
}

}  // namespace

int main() {
  Session session;
  launch_returns_before_the_work_is_done();
  order_is_kept();
  two_streams_overlap();
  events_order_across_streams();
  a_synchronous_copy_waits_for_the_device();
  an_error_in_the_work_reaches_the_next_synchronisation();
  work_outlives_what_it_was_given();
  many_threads_share_streams();
  std::puts("ok");
  return 0;
}
