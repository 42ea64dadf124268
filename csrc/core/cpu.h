// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace anynpu {

enum class Isa : int32_t {
#define ANYNPU_ISA(name) name,
#include "core/isa.def"
#undef ANYNPU_ISA
};

// The tier in force: the best one that this machine, this build and the cap allow. Lower values are better.
Isa current_isa();

// Whether the CPU has a tier: better ones need not include it.
bool cpu_runs(Isa isa);

// The first entry of a kernel table (best first) that is no better than the tier in force, that the CPU has and that is
// suitable(kernel).
template <typename Kernel, int N, typename Suitable>
const Kernel& pick(const Kernel* const (&table)[N], const Suitable& suitable) {
  for (const Kernel* kernel : table) {
    if (kernel->isa >= current_isa() && cpu_runs(kernel->isa) && suitable(*kernel)) return *kernel;
  }
  return *table[N - 1];
}

template <typename Kernel, int N>
const Kernel& pick(const Kernel* const (&table)[N]) {
  return pick(table, [](const Kernel&) { return true; });
}

}  // namespace anynpu
