// SPDX-License-Identifier: Apache-2.0
// What the codec needs from an instruction set tier.
#pragma once

#include "codec/format.h"
#include "core/cpu.h"

namespace anynpu::codec {

// Extra bits, first bit lowest. At least 64 bytes after `bytes` are readable.
struct BitSource {
  const uint8_t* data;
  int64_t bytes;
  int64_t position;     // in bits
  int64_t codes;        // that they are the extra bits of
  const uint8_t* next;  // what is most likely read afterwards; it need not exist
};

// Extra bits being written. At least 64 bytes after the last one are writable.
struct BitSink {
  uint8_t* to;
  uint64_t pending;
  int32_t filled;  // bits of pending, below 8
};

struct Kernel {
  Isa isa;
  // Reads count / 2 bytes of class nibbles (count a multiple of 64), all of them with tables[0] or piece i with
  // tables[i % 4], and writes what they stand for; folded values as value + 128. `ranks` is null unless codes are ranks.
  // Returns zero when the extra bits run out.
  int32_t (*expand)(const uint8_t* nibbles, int64_t count, const LaneTable* tables, bool one_table, Codes codes,
                    const RankMap* ranks, BitSource* extras, uint8_t* out);
  // The inverse in two steps: codes, folded or as they are, with their classes; every one must belong to a range.
  void (*classify)(const uint8_t* values, int64_t count, const CutTable* tables, bool one_table, bool folded,
                   uint8_t* codes, uint8_t* classes);
  // Class nibbles, and extra bits to the sink.
  void (*pack)(const uint8_t* codes, const uint8_t* classes, int64_t count, const LaneTable* tables, bool one_table,
               uint8_t* nibbles, BitSink* sink);
  // to[i] = map[from[i]], which may be the same; all of them are below `size`, count is a multiple of 64.
  void (*permute)(const uint8_t* map, int64_t size, int64_t count, const uint8_t* from, uint8_t* to);
  // map[rank] is the byte of two class nibbles that comes at this rank of all 256, sorted by the sum of the weights of both,
  // which are at most kMaxOrderWeight, then by the byte.
  void (*sort_pairs)(const uint8_t* order, uint8_t* map);
  // One range more, in `count` ways: each of costs[ends[i]] becomes at most that of one range less in `from`, which is `none`
  // for no range, and extra[i].
  void (*add_range)(const RangeCosts& from, int32_t none, const int32_t* ends, const int32_t* extra, int32_t count,
                    RangeCosts* costs);
  // Rows n of W[n][k], `stride` bytes apart, to columns of a panel, value + 128; `columns` and `steps` are multiples of kTile.
  void (*tile)(const int8_t* rows, int64_t stride, int64_t columns, int64_t steps, uint8_t* panel);
  // The inverse. Rows that do not fit the caches anyway may be written past them, which saves reading their lines first.
  void (*untile)(const uint8_t* panel, int64_t columns, int64_t steps, int8_t* rows, int64_t stride, bool past_caches);
  // Puts what was written past the caches before everything that the thread writes afterwards.
  void (*fence)();
  // The least and the largest byte of `count` pieces, `stride` bytes apart.
  void (*extent)(const uint8_t* pieces, int64_t count, int64_t stride, uint8_t* least, uint8_t* largest);
  // The hash of docs/formats.md of `count` bytes, a multiple of 8.
  uint32_t (*checksum)(const uint8_t* bytes, int64_t count, uint32_t seed);
};

// The kernels of the tier in force.
const Kernel& kernel();

}  // namespace anynpu::codec
