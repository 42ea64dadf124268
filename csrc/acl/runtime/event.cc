// SPDX-License-Identifier: Apache-2.0
// Events: marks in a stream that the host and other streams can wait for.
#include <algorithm>

#include "acl/runtime/stream.h"

namespace anynpu::acl {
namespace {

using Clock = std::chrono::steady_clock;

struct Event : Object {
  Event();
  const uint64_t id;
  std::mutex mutex;
  std::condition_variable changed;
  bool armed = false;      // recorded, and not reset since
  uint64_t recorded = 0;   // records asked for
  uint64_t completed = 0;  // the newest record that a stream has reached
  int64_t waits = 0;       // stream waits not yet over
  Clock::time_point time;

  bool done() const { return completed >= recorded; }
};
using EventPtr = std::shared_ptr<Event>;

std::atomic<uint64_t> event_count{0};

Event::Event() : id(++event_count) {}

HandleTable<Event>& events() { return handle_table<Event, Kind::event>("aclrtEvent"); }

void find_leaks() {
  events().for_each([](const EventPtr& event) {
    check::add({"leaked-event", "", "aclrtEvent never destroyed", event->created, nullptr});
  });
}

[[maybe_unused]] const bool registered = (check::on_report(find_leaks), true);

int32_t get_event(const char* call, aclrtEvent handle, EventPtr* event) {
  return events().get(call, "event", handle, ACL_ERROR_INVALID_PARAM, ACL_ERROR_RT_PARAM_INVALID, event);
}

int32_t create(const char* call, aclrtEvent* event) {
  if (event == nullptr) return report(ACL_ERROR_INVALID_PARAM, "%s: the address of the event is null", call);
  *event = events().add<aclrtEvent>(std::make_shared<Event>());
  return ACL_SUCCESS;
}

int32_t record(aclrtEvent handle, aclrtStream stream_handle) {
  constexpr const char* call = "aclrtRecordEvent";
  EventPtr event;
  StreamPtr stream;
  if (const int32_t status = get_event(call, handle, &event)) return status;
  if (const int32_t status = get_stream(call, stream_handle, &stream)) return status;
  std::lock_guard<std::mutex> lock(event->mutex);
  const uint64_t mark = event->recorded + 1;
  const auto reach = [event, mark] {
    std::lock_guard<std::mutex> reached(event->mutex);
    event->completed = std::max(event->completed, mark);
    event->time = Clock::now();
    event->changed.notify_all();
    return Failure{};
  };
  const uint64_t sequence = stream->submit(reach, true);
  event->armed = true;  // only now: nobody is to wait for a mark that did not get into the stream
  event->recorded = mark;
  if (check::enabled) check::recorded(event->id, stream->id(), sequence);
  return ACL_SUCCESS;
}

int32_t wait_in_stream(aclrtStream stream_handle, aclrtEvent handle) {
  constexpr const char* call = "aclrtStreamWaitEvent";
  EventPtr event;
  StreamPtr stream;
  if (const int32_t status = get_event(call, handle, &event)) return status;
  if (const int32_t status = get_stream(call, stream_handle, &stream)) return status;
  std::lock_guard<std::mutex> lock(event->mutex);
  if (!event->armed) {
    if (check::enabled)
      check::add({"event-not-recorded", call, "waits for an event that was never recorded", event->created, nullptr});
    return ACL_SUCCESS;
  }
  const uint64_t mark = event->recorded;
  const auto wait = [event, mark] {
    std::unique_lock<std::mutex> waiting(event->mutex);
    event->changed.wait(waiting, [&] { return event->completed >= mark; });
    --event->waits;
    return Failure{};
  };
  stream->submit(wait, true);
  ++event->waits;
  if (check::enabled) check::stream_waited(stream->id(), event->id);
  return ACL_SUCCESS;
}

int32_t wait_on_host(const char* call, aclrtEvent handle, int32_t timeout_ms) {
  EventPtr event;
  if (const int32_t status = get_event(call, handle, &event)) return status;
  std::unique_lock<std::mutex> lock(event->mutex);
  const uint64_t mark = event->armed ? event->recorded : 0;
  const auto reached = [&] { return event->completed >= mark; };
  if (timeout_ms < 0) {
    event->changed.wait(lock, reached);
  } else if (!event->changed.wait_for(lock, std::chrono::milliseconds(timeout_ms), reached)) {
    return report(ACL_ERROR_RT_EVENT_SYNC_TIMEOUT, "%s: not reached after %d ms", call, timeout_ms);
  }
  if (check::enabled) check::host_waited_for_event(event->id);
  return ACL_SUCCESS;
}

// Whether the host can see the event reached.
int32_t query(const char* call, aclrtEvent handle, const void* result, bool* reached) {
  if (result == nullptr) return report(ACL_ERROR_INVALID_PARAM, "%s: status is a null pointer", call);
  EventPtr event;
  if (const int32_t status = get_event(call, handle, &event)) return status;
  std::lock_guard<std::mutex> lock(event->mutex);
  *reached = event->armed && event->done();
  if (*reached && check::enabled) check::host_waited_for_event(event->id);
  return ACL_SUCCESS;
}

int32_t time_of(const char* call, aclrtEvent handle, Clock::time_point* time) {
  EventPtr event;
  if (const int32_t status = get_event(call, handle, &event)) return status;
  std::lock_guard<std::mutex> lock(event->mutex);
  if (!event->armed || !event->done()) {
    return report(ACL_ERROR_RT_EVENT_TIMESTAMP_INVALID, "%s: the event was not recorded or not reached yet", call);
  }
  *time = event->time;
  return ACL_SUCCESS;
}

}  // namespace
}  // namespace anynpu::acl

using namespace anynpu::acl;

extern "C" aclError aclrtCreateEvent(aclrtEvent* event) {
  return guarded("aclrtCreateEvent", [&] { return create("aclrtCreateEvent", event); });
}

extern "C" aclError aclrtCreateEventWithFlag(aclrtEvent* event, uint32_t) {
  return guarded("aclrtCreateEventWithFlag", [&] { return create("aclrtCreateEventWithFlag", event); });
}

extern "C" aclError aclrtCreateEventExWithFlag(aclrtEvent* event, uint32_t) {
  return guarded("aclrtCreateEventExWithFlag", [&] { return create("aclrtCreateEventExWithFlag", event); });
}

extern "C" aclError aclrtDestroyEvent(aclrtEvent event) {
  return guarded("aclrtDestroyEvent", [&] {
    return events().remove("aclrtDestroyEvent", "event", event, ACL_ERROR_INVALID_PARAM, ACL_ERROR_RT_PARAM_INVALID);
  });
}

extern "C" aclError aclrtRecordEvent(aclrtEvent event, aclrtStream stream) {
  return guarded("aclrtRecordEvent", [&] { return record(event, stream); });
}

extern "C" aclError aclrtResetEvent(aclrtEvent event, aclrtStream stream) {
  return guarded("aclrtResetEvent", [&]() -> int32_t {
    EventPtr found;
    StreamPtr unused;
    if (const int32_t status = get_event("aclrtResetEvent", event, &found)) return status;
    if (const int32_t status = get_stream("aclrtResetEvent", stream, &unused)) return status;
    std::lock_guard<std::mutex> lock(found->mutex);
    found->armed = false;
    return ACL_SUCCESS;
  });
}

extern "C" aclError aclrtStreamWaitEvent(aclrtStream stream, aclrtEvent event) {
  return guarded("aclrtStreamWaitEvent", [&] { return wait_in_stream(stream, event); });
}

extern "C" aclError aclrtSynchronizeEvent(aclrtEvent event) {
  return guarded("aclrtSynchronizeEvent", [&] { return wait_on_host("aclrtSynchronizeEvent", event, -1); });
}

extern "C" aclError aclrtSynchronizeEventWithTimeout(aclrtEvent event, int32_t timeout) {
  return guarded("aclrtSynchronizeEventWithTimeout",
                 [&] { return wait_on_host("aclrtSynchronizeEventWithTimeout", event, timeout); });
}

extern "C" aclError aclrtQueryEvent(aclrtEvent event, aclrtEventStatus* status) {
  return guarded("aclrtQueryEvent", [&] {
    bool reached = false;
    const int32_t error = query("aclrtQueryEvent", event, status, &reached);
    if (error == ACL_SUCCESS) *status = reached ? ACL_EVENT_STATUS_COMPLETE : ACL_EVENT_STATUS_NOT_READY;
    return error;
  });
}

extern "C" aclError aclrtQueryEventStatus(aclrtEvent event, aclrtEventRecordedStatus* status) {
  return guarded("aclrtQueryEventStatus", [&] {
    bool reached = false;
    const int32_t error = query("aclrtQueryEventStatus", event, status, &reached);
    if (error == ACL_SUCCESS) {
      *status = reached ? ACL_EVENT_RECORDED_STATUS_COMPLETE : ACL_EVENT_RECORDED_STATUS_NOT_READY;
    }
    return error;
  });
}

extern "C" aclError aclrtQueryEventWaitStatus(aclrtEvent event, aclrtEventWaitStatus* status) {
  return guarded("aclrtQueryEventWaitStatus", [&]() -> int32_t {
    if (status == nullptr)
      return report(ACL_ERROR_INVALID_PARAM, "aclrtQueryEventWaitStatus: status is a null pointer");
    EventPtr found;
    if (const int32_t error = get_event("aclrtQueryEventWaitStatus", event, &found)) return error;
    std::lock_guard<std::mutex> lock(found->mutex);
    *status = found->waits == 0 ? ACL_EVENT_WAIT_STATUS_COMPLETE : ACL_EVENT_WAIT_STATUS_NOT_READY;
    return ACL_SUCCESS;
  });
}

extern "C" aclError aclrtEventElapsedTime(float* ms, aclrtEvent startEvent, aclrtEvent endEvent) {
  return guarded("aclrtEventElapsedTime", [&]() -> int32_t {
    if (ms == nullptr) return report(ACL_ERROR_INVALID_PARAM, "aclrtEventElapsedTime: ms is a null pointer");
    Clock::time_point start, end;
    if (const int32_t status = time_of("aclrtEventElapsedTime", startEvent, &start)) return status;
    if (const int32_t status = time_of("aclrtEventElapsedTime", endEvent, &end)) return status;
    *ms = std::chrono::duration<float, std::milli>(end - start).count();
    return ACL_SUCCESS;
  });
}

extern "C" aclError aclrtEventGetTimestamp(aclrtEvent event, uint64_t* timestamp) {
  return guarded("aclrtEventGetTimestamp", [&]() -> int32_t {
    if (timestamp == nullptr)
      return report(ACL_ERROR_INVALID_PARAM, "aclrtEventGetTimestamp: timestamp is a null pointer");
    Clock::time_point time;
    if (const int32_t status = time_of("aclrtEventGetTimestamp", event, &time)) return status;
    *timestamp = std::chrono::duration_cast<std::chrono::microseconds>(time.time_since_epoch()).count();
    return ACL_SUCCESS;
  });
}
