// SPDX-License-Identifier: Apache-2.0
#include "acl/runtime/check.h"

#include <dlfcn.h>
#include <execinfo.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <map>
#include <mutex>
#include <sstream>
#include <vector>

namespace anynpu::acl::check {
namespace {

constexpr int kDepth = 24;
constexpr int kShown = 8;
constexpr int kExitStatus = 86;

bool asked_for() {
  const char* value = std::getenv("ANYNPU_CHECK");
  return value != nullptr && *value != '\0' && std::strcmp(value, "0") != 0;
}

struct Write {
  uint64_t stream, sequence;
  const char *begin, *end;
  std::string call;
  Site site;
};

// Per stream, the number of the last piece of its work that is known to be done.
using Horizon = std::map<uint64_t, uint64_t>;

void advance(Horizon& horizon, const Horizon& other) {
  for (const auto& entry : other) horizon[entry.first] = std::max(horizon[entry.first], entry.second);
}

struct State {
  std::mutex mutex;
  std::vector<Finding> findings;
  std::vector<void (*)()> collectors;
  std::map<uint64_t, Horizon> at_event, at_stream;
  std::vector<Write> unseen;
};

State& state() {
  static auto* instance = new State;
  return *instance;
}

void host_knows_locked(const Horizon& horizon) {
  auto& unseen = state().unseen;
  unseen.erase(std::remove_if(unseen.begin(), unseen.end(),
                              [&](const Write& write) {
                                const auto known = horizon.find(write.stream);
                                return known != horizon.end() && known->second >= write.sequence;
                              }),
               unseen.end());
}

struct Frame {
  std::string module, symbol;
  uint64_t offset;  // from the start of the module, as addr2line wants it
};

bool ours(const std::string& module) {
  const std::string name = module.substr(module.rfind('/') + 1);
  return name == "libascendcl.so" || name == "libnnopbase.so" || name == "libopapi.so";
}

}  // namespace

struct Trace {
  int depth;
  void* frames[kDepth];
};

namespace {

// The program's part of the stack: without our own functions at the top and the C library's start code at the end.
std::vector<Frame> frames_of(const Site& site) {
  std::vector<Frame> frames;
  if (!site) return frames;
  for (int i = 0; i < site->depth && frames.size() < kShown; ++i) {
    Dl_info info;
    const auto address = reinterpret_cast<uintptr_t>(site->frames[i]);
    if (dladdr(site->frames[i], &info) == 0 || info.dli_fname == nullptr) {
      frames.push_back({"?", "", address});
      continue;
    }
    const std::string module = info.dli_fname;
    if (ours(module)) continue;
    if (module.find("/libc.so") != std::string::npos || module.find("/libc-") != std::string::npos) break;
    // A return address points behind the call.
    frames.push_back({module, info.dli_sname == nullptr ? "" : info.dli_sname,
                      address - 1 - reinterpret_cast<uintptr_t>(info.dli_fbase)});
  }
  return frames;
}

std::string text_of(const std::vector<Frame>& frames) {
  std::ostringstream text;
  for (const Frame& frame : frames) {
    text << "        " << frame.module << "+0x" << std::hex << frame.offset << std::dec;
    if (!frame.symbol.empty()) text << " (" << frame.symbol << ")";
    text << "\n";
  }
  return text.str();
}

// Equal findings of one place in the program, counted.
struct Group {
  Finding finding;
  std::vector<Frame> at, created, destroyed;
  size_t count;
};

std::vector<Group> grouped(const std::vector<Finding>& findings, const std::vector<Site>& sites) {
  std::vector<Group> groups;
  std::map<std::string, size_t> index;
  for (size_t i = 0; i < findings.size(); ++i) {
    const Finding& finding = findings[i];
    Group group{finding, frames_of(sites[i]), frames_of(finding.created), frames_of(finding.destroyed), 1};
    const std::string key = finding.kind + "\n" + finding.call + "\n" + finding.message + "\n" + text_of(group.at) +
                            "\n" + text_of(group.created) + "\n" + text_of(group.destroyed);
    const auto known = index.emplace(key, groups.size());
    if (known.second) {
      groups.push_back(std::move(group));
    } else {
      ++groups[known.first->second].count;
    }
  }
  return groups;
}

void write_text(std::ostream& out, const std::vector<Group>& groups, size_t count) {
  out << "anynpu check: " << count << (count == 1 ? " finding\n" : " findings\n");
  for (const Group& group : groups) {
    out << "  " << group.finding.kind << ": " << (group.finding.call.empty() ? "" : group.finding.call + ": ")
        << group.finding.message;
    if (group.count > 1) out << " (" << group.count << " times)";
    out << "\n";
    if (!group.at.empty()) out << "      found at\n" << text_of(group.at);
    if (!group.created.empty()) out << "      created at\n" << text_of(group.created);
    if (!group.destroyed.empty()) out << "      destroyed at\n" << text_of(group.destroyed);
  }
}

std::string quoted(const std::string& text) {
  std::ostringstream out;
  out << '"';
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out << '\\' << c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      char code[8];
      std::snprintf(code, sizeof(code), "\\u%04x", static_cast<unsigned>(c));
      out << code;
    } else {
      out << c;
    }
  }
  out << '"';
  return out.str();
}

void write_json_frames(std::ostream& out, const char* name, const std::vector<Frame>& frames) {
  out << ", " << quoted(name) << ": [";
  for (size_t i = 0; i < frames.size(); ++i) {
    out << (i == 0 ? "" : ", ") << "{\"module\": " << quoted(frames[i].module) << ", \"offset\": " << frames[i].offset
        << ", \"symbol\": " << quoted(frames[i].symbol) << "}";
  }
  out << "]";
}

void write_json(std::ostream& out, const std::vector<Group>& groups, size_t count) {
  out << "{\"version\": 1, \"count\": " << count << ", \"findings\": [";
  for (size_t i = 0; i < groups.size(); ++i) {
    const Group& group = groups[i];
    out << (i == 0 ? "\n" : ",\n") << "  {\"kind\": " << quoted(group.finding.kind)
        << ", \"call\": " << quoted(group.finding.call) << ", \"message\": " << quoted(group.finding.message)
        << ", \"count\": " << group.count;
    write_json_frames(out, "at", group.at);
    write_json_frames(out, "created", group.created);
    write_json_frames(out, "destroyed", group.destroyed);
    out << "}";
  }
  out << (groups.empty() ? "]}\n" : "\n]}\n");
}

// `at` of each finding rides along in this vector, parallel to State::findings.
std::vector<Site>& found_at() {
  static auto* sites = new std::vector<Site>;
  return *sites;
}

size_t write_report() {
  for (void (*collect)() : state().collectors) collect();
  std::lock_guard<std::mutex> lock(state().mutex);
  const std::vector<Group> groups = grouped(state().findings, found_at());
  const size_t count = state().findings.size();
  if (const char* path = std::getenv("ANYNPU_CHECK_REPORT")) {
    std::ofstream file(path);
    write_json(file, groups, count);
  } else {
    write_text(std::cerr, groups, count);
  }
  return count;
}

// A failing program keeps its own exit status.
void at_exit(int status, void*) {
  const size_t count = write_report();
  if (count == 0 || status != 0) return;
  std::cout.flush();
  std::fflush(nullptr);
  _exit(kExitStatus);
}

}  // namespace

const bool enabled = asked_for();

namespace {
[[maybe_unused]] const bool scheduled = enabled && on_exit(at_exit, nullptr) == 0;
}

Site capture() {
  auto trace = std::make_shared<Trace>();
  trace->depth = backtrace(trace->frames, kDepth);
  return trace;
}

void add(Finding finding) {
  // Findings of the exit have no place in the program.
  const Site site = finding.call.empty() ? nullptr : capture();
  std::lock_guard<std::mutex> lock(state().mutex);
  state().findings.push_back(std::move(finding));
  found_at().push_back(site);
}

void on_report(void (*collect)()) { state().collectors.push_back(collect); }

void wrote(uint64_t stream, uint64_t sequence, const void* begin, size_t bytes, const char* call) {
  const auto* first = static_cast<const char*>(begin);
  const Site site = capture();
  std::lock_guard<std::mutex> lock(state().mutex);
  state().unseen.push_back({stream, sequence, first, first + bytes, call, site});
}

void recorded(uint64_t event, uint64_t stream, uint64_t sequence) {
  std::lock_guard<std::mutex> lock(state().mutex);
  Horizon& horizon = state().at_event[event];
  horizon = state().at_stream[stream];
  horizon[stream] = sequence;
}

void stream_waited(uint64_t stream, uint64_t event) {
  std::lock_guard<std::mutex> lock(state().mutex);
  advance(state().at_stream[stream], state().at_event[event]);
}

void host_waited_for_stream(uint64_t stream, uint64_t sequence) {
  std::lock_guard<std::mutex> lock(state().mutex);
  Horizon horizon = state().at_stream[stream];
  horizon[stream] = sequence;
  host_knows_locked(horizon);
}

void host_waited_for_event(uint64_t event) {
  std::lock_guard<std::mutex> lock(state().mutex);
  host_knows_locked(state().at_event[event]);
}

void host_waited_for_all() {
  std::lock_guard<std::mutex> lock(state().mutex);
  state().unseen.clear();
}

void host_reads(const char* call, const void* begin, size_t bytes) {
  const auto* first = static_cast<const char*>(begin);
  std::vector<Write> touched;
  {
    std::lock_guard<std::mutex> lock(state().mutex);
    for (const Write& write : state().unseen) {
      if (write.begin < first + bytes && first < write.end) touched.push_back(write);
    }
  }
  for (const Write& write : touched) {
    add({"unsynchronised-read", call, "reads the result of " + write.call + " before its stream was synchronised",
         write.site, nullptr});
  }
}

}  // namespace anynpu::acl::check
