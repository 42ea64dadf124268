// SPDX-License-Identifier: Apache-2.0
#include "ops/weight_quant_matmul/k_blocks.h"

#include <algorithm>

#include "core/integer.h"

namespace anynpu {

int64_t count_blocks(int64_t k, int64_t group) {
  const int64_t whole = k / group, rest = k % group;
  return whole * ceil_divide(group, kSpan) + ceil_divide(rest, kSpan);
}

void fill_blocks(int64_t k, int64_t group, KBlock* blocks) {
  for (int64_t first = 0; first < k;) {
    const int64_t group_end = std::min((first / group + 1) * group, k);
    *blocks = {first, std::min(kSpan, group_end - first)};
    first += blocks++->count;
  }
}

BlockSpan span_from(const KBlock* blocks, int64_t block_count, int64_t first, int64_t most_k) {
  BlockSpan span = {first, first, 0, 0};
  if (first < block_count) span.k = blocks[first].k;
  while (span.last < block_count && span.count + blocks[span.last].count <= most_k) {
    span.count += blocks[span.last++].count;
  }
  return span;
}

}  // namespace anynpu
