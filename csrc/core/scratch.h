// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

namespace anynpu {

enum class ScratchSlot : int32_t { main, fallback, codes };
constexpr size_t kScratchAlignment = 64;

// Memory of the calling thread, kept for its next call; null when there is none. A slot is valid until it is asked
// again.
void* scratch(ScratchSlot slot, size_t bytes);

}  // namespace anynpu
