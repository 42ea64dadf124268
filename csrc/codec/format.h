// SPDX-License-Identifier: Apache-2.0
// The compressed int8 format "c8" of docs/formats.md, versions 1 and 2. No STL: the kernel units include this too.
#pragma once

#include <cstdint>

namespace anynpu::codec {

constexpr int64_t kBlockK = 256;       // k of a block
constexpr int64_t kBlockN = 128;       // columns of a block
constexpr int64_t kPanelColumns = 64;  // columns of a panel
constexpr int64_t kPiece = 64;         // values that kernels handle at a time
constexpr int64_t kPanelPieces = 4;    // of one step of k: 64 columns of 4 k
constexpr int64_t kTile = 8;           // columns and steps that kernels move at a time
constexpr int64_t kMaxBlockValues = kBlockK * kBlockN;
constexpr int64_t kEntryBytes = 8;  // of the index, for each block
constexpr int64_t kClasses = 16;
constexpr int kMaxClassBits = 7;  // so that the extra bits of eight values fit in one 64-bit read
constexpr int kMaxLevels = 6;
constexpr int kMaxTablesLog2 = 5;     // a table for 4 of 128 columns
constexpr int64_t kHeaderBytes = 16;  // of a coded payload
constexpr int64_t kTableBytes = 24;   // of level 1: 16 bases, 16 nibbles of bit counts
constexpr int64_t kRanksBytes = 24;   // of a further level of ranks: 16 weights of its order, 16 nibbles of bit counts
constexpr int64_t kBoxesBytes = 32;   // of a further level of boxes: 16 bases, 16 masks
constexpr int kMaxOrderWeight = 127;
constexpr uint8_t kMark1 = 0xc8;  // of version 1, which has no boxes
constexpr uint8_t kMark = 0xc9;   // of version 2

enum class Kind : uint8_t { raw = 0, constant = 1, coded = 2 };

// Entry of the index: where a block ends follows from the lengths before it.
struct Entry {
  uint32_t checksum;
  uint16_t words;  // payload length in 8 bytes
  uint8_t kind;
  uint8_t mark;
};
static_assert(sizeof(Entry) == kEntryBytes);

// A code of class c is base[c] plus the next bits of the stream, put where mask[c] has ones, the first one lowest. The ones of
// each half of a mask are its lowest bits.
struct Table {
  uint8_t base[kClasses];
  uint8_t mask[kClasses];
};

// What codes stand for: value + 128, folded values (0, -1, 1, -2, ...), two class nibbles of the level below, or their rank.
enum class Codes { values, folded, nibbles, ranks };

// The two class nibbles of each rank below `count`.
struct RankMap {
  uint8_t nibbles[256];
  int64_t count;
};

// The tables of 64 neighbouring values, one for each 16, as byte shuffles want them.
struct LaneTable {
  alignas(64) uint8_t base[kPiece];
  uint8_t mask[kPiece];
};

// The ranges of codes that are classes, for four tables, as a search tree of their bounds: from node i a code goes on
// to node 2 i, or to 2 i + 1 when it is above the bound. It starts at node 1; four steps on, the node is 16 plus its
// range.
struct CutTable {
  alignas(64)
      int8_t bound[kPiece];  // code - 128 of the last code before a range, by node, or 127 where the range is unused
  uint8_t class_of[kPiece];  // by range
};
constexpr int kCutSteps = 4;

// Costs of covering codes with 1 to 16 ranges.
struct alignas(64) RangeCosts {
  int32_t of[kClasses];
};

// Shape of the compressed matrix, W.T of shape (k, n), and of its blocks. Block b covers k block b % k_blocks.
struct Geometry {
  int64_t k;
  int64_t n;
  int64_t k_blocks() const { return (k + kBlockK - 1) / kBlockK; }
  int64_t n_blocks() const { return (n + kBlockN - 1) / kBlockN; }
  int64_t blocks() const { return k_blocks() * n_blocks(); }
};

// One block: [panels][steps][64 columns][4 k] values.
struct BlockShape {
  int64_t k;  // first
  int64_t n;  // first
  int64_t k_count;
  int64_t n_count;
  int64_t steps() const { return (k_count + 3) / 4; }
  int64_t panels() const { return (n_count + kPanelColumns - 1) / kPanelColumns; }
  int64_t panel_values() const { return steps() * kPanelColumns * 4; }
  int64_t values() const { return panels() * panel_values(); }
};

// The values of a block as two nibbles each, two to a byte, in the order of the block: value + 128 is 16 * high[class] + bits.
struct Nibbles {
  const uint8_t* classes;  // or null
  const uint8_t* bits;
  const uint8_t* next;  // what is most likely read afterwards; it need not exist
  uint8_t high[kClasses];
};

// Every level of a block of `values` values is whole pieces, and 64 bytes of nibbles follow the extra bits.
inline bool levels_fit(int64_t values, int levels) {
  return levels >= 1 && levels <= kMaxLevels && values % (kPiece << (levels - 1)) == 0 && (values >> levels) >= kPiece;
}

}  // namespace anynpu::codec
