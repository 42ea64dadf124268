// SPDX-License-Identifier: Apache-2.0
// Streams: in-order queues of work with a thread each.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <thread>

#include "acl/acl_rt.h"
#include "acl/runtime/handles.h"

namespace anynpu::acl {

using Work = std::function<Failure()>;

class ACL_FUNC_VISIBILITY Stream : public Object {
 public:
  Stream();
  ~Stream();  // waits for the work

  uint64_t id() const { return id_; }
  // Adds work to the end of the queue and returns its sequence number. Events go on after a failure that stops the
  // stream.
  uint64_t submit(Work work, bool always = false);
  // Waits for everything submitted before the call; false when the time (ms, negative: no limit) was too short.
  bool wait(int32_t timeout_ms, uint64_t* sequence = nullptr);
  bool on_worker() const { return std::this_thread::get_id() == worker_.get_id(); }
  // The first failure since the last call.
  Failure take_failure();
  void stop_on_failure(bool stop) { stop_on_failure_ = stop; }

 private:
  struct Item {
    Work work;
    bool always;
  };
  void run();

  const uint64_t id_;
  std::mutex mutex_;
  std::condition_variable arrived_, finished_;
  std::deque<Item> queue_;
  uint64_t submitted_ = 0, completed_ = 0;
  bool closing_ = false, sleeping_ = false;
  int waiting_ = 0;
  Failure failure_;
  std::atomic<bool> stop_on_failure_{false};
  std::thread worker_;
};
using StreamPtr = std::shared_ptr<Stream>;

// The stream behind a handle; null is the default stream, made on first use.
ACL_FUNC_VISIBILITY int32_t get_stream(const char* call, aclrtStream handle, StreamPtr* stream);

// Waits for all streams except the one whose worker calls; false when the time was too short.
bool wait_for_all(int32_t timeout_ms);
// Reports the first failure of any stream since it was last asked for.
int32_t report_failures(const char* call);

}  // namespace anynpu::acl
