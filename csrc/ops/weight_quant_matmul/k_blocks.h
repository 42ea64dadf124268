// SPDX-License-Identifier: Apache-2.0
// The k of a product in blocks, one epilogue each, and in spans of them, one panel each.
#pragma once

#include "gemm/gemm.h"

namespace anynpu {

int64_t count_blocks(int64_t k, int64_t group);
void fill_blocks(int64_t k, int64_t group, KBlock* blocks);

// Blocks [first, last).
struct BlockSpan {
  int64_t first;
  int64_t last;
  int64_t k;
  int64_t count;
};

// As many of `block_count` blocks as have at most most_k k together, from `first` on.
BlockSpan span_from(const KBlock* blocks, int64_t block_count, int64_t first, int64_t most_k = kSpan);

}  // namespace anynpu
