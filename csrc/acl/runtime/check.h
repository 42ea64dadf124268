// SPDX-License-Identifier: Apache-2.0
// Checking mode (ANYNPU_CHECK=1): findings with the places in the program they come from, reported when it exits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "acl/acl_base.h"

namespace anynpu::acl::check {

ACL_FUNC_VISIBILITY extern const bool enabled;

// The call stack of a moment in the program; null outside checking mode.
struct Trace;
using Site = std::shared_ptr<const Trace>;
ACL_FUNC_VISIBILITY Site capture();
inline Site here() { return enabled ? capture() : nullptr; }

struct Finding {
  std::string kind;     // stable, for programs: "leaked-tensor", "double-free", ...
  std::string call;     // the function that found it; empty for findings at exit
  std::string message;  // the sentence
  Site created;         // where the object came from
  Site destroyed;       // where it went, if it did
};
ACL_FUNC_VISIBILITY void add(Finding finding);

// `collect` runs before the report is written and adds what is still alive.
ACL_FUNC_VISIBILITY void on_report(void (*collect)());

// Which device writes the host has waited for. Streams and events are known by number; `sequence` counts a stream's
// work.
ACL_FUNC_VISIBILITY void wrote(uint64_t stream, uint64_t sequence, const void* begin, size_t bytes, const char* call);
void recorded(uint64_t event, uint64_t stream, uint64_t sequence);
void stream_waited(uint64_t stream, uint64_t event);
void host_waited_for_stream(uint64_t stream, uint64_t sequence);
void host_waited_for_event(uint64_t event);
void host_waited_for_all();
// Adds a finding when [begin, begin + bytes) holds results of work that the host has not waited for.
void host_reads(const char* call, const void* begin, size_t bytes);

}  // namespace anynpu::acl::check
