// SPDX-License-Identifier: Apache-2.0
#include "codec/decode.h"

#include <algorithm>
#include <cstring>

namespace anynpu::codec {

#define ANYNPU_KERNEL(tier) extern const Kernel codec_##tier;
#include "codec/kernels.def"
#undef ANYNPU_KERNEL

namespace {

constexpr const Kernel* kKernels[] = {
#define ANYNPU_KERNEL(tier) &codec_##tier,
#include "codec/kernels.def"
#undef ANYNPU_KERNEL
};

constexpr const char* kBitsMissing = "its bits run out";
constexpr const char* kBitsLeft = "bits are left over";
constexpr const char* kBadTable = "a table holds a bit count above 7";
constexpr const char* kBadMask = "a table holds a mask that is none";

// A coded payload, taken apart. Levels count from 1, the values.
struct Coded {
  int levels;
  bool folded;
  int tables_log2;
  const uint8_t* value_tables;
  bool boxes[kMaxLevels + 1];  // of levels above 1: boxes or ranks
  const uint8_t* level_tables[kMaxLevels + 1];
  BitSource extras[kMaxLevels + 1];
  const uint8_t* nibbles;  // of the last level
};

constexpr int64_t kPastCaches = int64_t{8} << 20;  // bytes of a weight that are more than stay in the caches

// A weight (n, k) that is written block by block.
struct Rows {
  int8_t* weight;
  Geometry geometry;
};

// What a block is decoded to.
struct Target {
  uint8_t* values;   // all of them; of one panel, if they go on to rows
  Nibbles* nibbles;  // where they can be given as such, or null
  const Rows* rows;  // or null
};

// Values k and later of a column of a panel.
void untile_column(const uint8_t* panel, int64_t column, int64_t k, int64_t k_count, int8_t* row) {
  for (; k < k_count; ++k) {
    row[k] = static_cast<int8_t>(panel[(k / 4 * kPanelColumns + column) * 4 + k % 4] ^ 0x80);
  }
}

// The values of a panel to their places.
void untile(const uint8_t* values, const BlockShape& shape, int64_t panel, const Rows& rows) {
  const int64_t k = rows.geometry.k, first = panel * kPanelColumns;
  int8_t* to = rows.weight + (shape.n + first) * k + shape.k;
  const int64_t columns = std::min(kPanelColumns, shape.n_count - first), whole = columns / kTile * kTile;
  const int64_t steps = shape.k_count / 4 / kTile * kTile;
  kernel().untile(values, whole, steps, to, k, rows.geometry.n * k >= kPastCaches);
  for (int64_t column = 4 * steps < shape.k_count ? 0 : whole; column < columns; ++column) {
    untile_column(values, column, column < whole ? 4 * steps : 0, shape.k_count, to + column * k);
  }
}

void untile_panels(const uint8_t* values, int64_t stride, const BlockShape& shape, const Rows& rows) {
  for (int64_t panel = 0; panel < shape.panels(); ++panel) untile(values + panel * stride, shape, panel, rows);
}

const char* parse(const uint8_t* payload, int64_t bytes, int64_t values, uint8_t mark, Coded* coded) {
  if (bytes < kHeaderBytes) return "its header is cut off";
  coded->levels = payload[0];
  coded->folded = payload[1] != 0;
  coded->tables_log2 = payload[2];
  if (!levels_fit(values, coded->levels) || payload[1] > 1 || coded->tables_log2 > kMaxTablesLog2 ||
      payload[3] >> (mark == kMark1 ? 0 : coded->levels - 1) != 0) {
    return "its header names no known coding";
  }
  coded->value_tables = payload + kHeaderBytes;
  int64_t at = kHeaderBytes + (kTableBytes << coded->tables_log2);
  for (int level = 2; level <= coded->levels; ++level) {
    coded->boxes[level] = (payload[3] >> (level - 2) & 1) != 0;
    coded->level_tables[level] = payload + at;
    at += coded->boxes[level] ? kBoxesBytes : kRanksBytes;
  }
  const uint8_t* next = payload + bytes;
  for (int level = coded->levels; level >= 1; --level) {
    const int64_t extras_bytes = payload[2 + 2 * level] | payload[3 + 2 * level] << 8;
    const int64_t codes = values >> (level - 1);
    coded->extras[level] = {payload + at, extras_bytes, 0, codes, next};
    at += extras_bytes;
    next += codes;  // a level fetches a byte a code
  }
  coded->nibbles = payload + at;
  at += values >> coded->levels;
  return (at + 7) / 8 * 8 == bytes ? nullptr : "its parts do not add up to its length";
}

bool read_bits(const uint8_t* from, Table* table) {
  bool valid = true;
  for (int i = 0; i < kClasses; ++i) {
    const int bits = from[i / 2] >> (i % 2 * 4) & 15;
    valid = valid && bits <= kMaxClassBits;
    table->mask[i] = mask_of_bits(bits);
  }
  return valid;
}

bool read_table(const uint8_t* from, Table* table) {
  std::memcpy(table->base, from, kClasses);
  return read_bits(from + kClasses, table);
}

bool all_read(const BitSource& extras) { return (extras.position + 7) / 8 == extras.bytes; }

bool read_boxes(const uint8_t* from, Table* table) {
  std::memcpy(table, from, sizeof(*table));
  bool valid = true;
  for (const uint8_t mask : table->mask) {
    const int low = mask & 15, high = mask >> 4;
    valid = valid && (low & (low + 1)) == 0 && (high & (high + 1)) == 0 && mask != 255;
  }
  return valid;
}

// The class nibbles of the level below `level`, whose codes are two of them or their rank.
const char* decode_nibbles(Coded* coded, int level, const uint8_t* nibbles, int64_t count, uint8_t* out) {
  const uint8_t* from = coded->level_tables[level];
  const bool boxes = coded->boxes[level];
  Table table;
  RankMap ranks;
  if (boxes) {
    if (!read_boxes(from, &table)) return kBadMask;
  } else {
    if (!read_bits(from + kClasses, &table)) return kBadTable;
    ranks.count = set_rank_bases(&table);
    if (!rank_map(from, ranks.nibbles)) return "an order holds a weight above 127";
  }
  const LaneTable lanes = lane_table({&table, &table, &table, &table});
  const Codes codes = boxes ? Codes::nibbles : Codes::ranks;
  if (!kernel().expand(nibbles, count, &lanes, true, codes, boxes ? nullptr : &ranks, &coded->extras[level], out)) {
    return kBitsMissing;
  }
  return all_read(coded->extras[level]) ? nullptr : kBitsLeft;
}

// Each panel goes on to its rows while it is in the L1 cache.
const char* decode_values(Coded* coded, const BlockShape& shape, const uint8_t* nibbles, const Target& target) {
  Table tables[1 << kMaxTablesLog2];
  for (int i = 0; i < 1 << coded->tables_log2; ++i) {
    if (!read_table(coded->value_tables + i * kTableBytes, &tables[i])) return kBadTable;
  }
  const bool one_table = coded->tables_log2 == 0;
  const int64_t parts = one_table && target.rows == nullptr ? 1 : shape.panels(), count = shape.values() / parts;
  for (int64_t part = 0; part < parts; ++part, nibbles += count / 2, coded->extras[1].next += count) {
    LaneTable lanes[kPanelPieces];
    for (int64_t piece = 0; piece < (one_table ? 1 : kPanelPieces); ++piece) {
      const Table* of_lane[4];
      for (int64_t lane = 0; lane < 4; ++lane) {
        of_lane[lane] = &tables[table_of_lane(16 * part + 4 * piece + lane, coded->tables_log2)];
      }
      lanes[piece] = lane_table(of_lane);
    }
    const Codes codes = coded->folded ? Codes::folded : Codes::values;
    uint8_t* out = target.values + (target.rows == nullptr ? part * count : 0);
    if (!kernel().expand(nibbles, count, lanes, one_table, codes, nullptr, &coded->extras[1], out)) return kBitsMissing;
    if (target.rows != nullptr) untile(out, shape, part, *target.rows);
  }
  return all_read(coded->extras[1]) ? nullptr : kBitsLeft;
}

// Whether the values are nibbles: then what is said of them by level 1. A bad table says no.
bool are_nibbles(const Coded& coded, int64_t values, Nibbles* nibbles) {
  Table table;
  if (coded.folded || coded.tables_log2 != 0 || coded.extras[1].bytes != values / 2) return false;
  if (!read_table(coded.value_tables, &table)) return false;
  for (int i = 0; i < kClasses; ++i) {
    if (table.mask[i] != mask_of_bits(4) || table.base[i] % 16 != 0) return false;
    nibbles->high[i] = table.base[i] / 16;
  }
  nibbles->bits = coded.extras[1].data;
  nibbles->next = coded.extras[1].next;
  return true;
}

const char* decode_coded(const uint8_t* payload, int64_t bytes, const BlockShape& shape, uint8_t mark,
                         const Target& target) {
  Coded coded;
  if (const char* error = parse(payload, bytes, shape.values(), mark, &coded)) return error;
  alignas(64) uint8_t buffers[2][kMaxBlockValues / 2];
  const bool whole = target.nibbles == nullptr || !are_nibbles(coded, shape.values(), target.nibbles);
  const uint8_t* nibbles = coded.nibbles;
  for (int level = coded.levels; level >= 2; --level) {
    uint8_t* lower = level == 2 && !whole ? target.values : buffers[level % 2];
    if (const char* error = decode_nibbles(&coded, level, nibbles, shape.values() >> (level - 1), lower)) return error;
    nibbles = lower;
  }
  if (whole) return decode_values(&coded, shape, nibbles, target);
  target.nibbles->classes = nibbles;
  return nullptr;
}

void copy_raw(const uint8_t* payload, const BlockShape& shape, const Target& target) {
  if (target.rows != nullptr) return untile_panels(payload, shape.panel_values(), shape, *target.rows);
  std::memcpy(target.values, payload, static_cast<size_t>(shape.values()));
}

void fill(uint8_t value, const BlockShape& shape, const Target& target) {
  const int64_t count = target.rows != nullptr ? shape.panel_values() : shape.values();
  std::memset(target.values, value, static_cast<size_t>(count));
  if (target.rows != nullptr) untile_panels(target.values, 0, shape, *target.rows);
}

const char* check_entry(const Entry& entry, int64_t values) {
  if (entry.mark != kMark && entry.mark != kMark1) return "has no mark of this format";
  const int64_t bytes = 8 * int64_t{entry.words};
  switch (static_cast<Kind>(entry.kind)) {
    case Kind::raw: return bytes == values ? nullptr : "has a wrong length";
    case Kind::constant: return bytes == 8 ? nullptr : "has a wrong length";
    case Kind::coded: return bytes >= kHeaderBytes && bytes <= values ? nullptr : "has a wrong length";
  }
  return "names no known kind of block";
}

const char* decode(const Stream& stream, int64_t block, const Target& target) {
  const Entry entry = read_entry(stream.index, block);
  const BlockShape shape = block_shape(stream.geometry, block);
  const uint8_t* payload = stream.data + stream.offsets[block];
  const int64_t bytes = 8 * int64_t{entry.words};
  // Once more, because the caller's memory may have changed since.
  if (check_entry(entry, shape.values()) != nullptr || bytes > stream.bytes - stream.offsets[block]) {
    return "its index entry has changed";
  }
  if (kernel().checksum(payload, bytes, block_seed(stream.geometry, block, entry.kind)) != entry.checksum) {
    return "its checksum does not match";
  }
  switch (static_cast<Kind>(entry.kind)) {
    case Kind::raw: copy_raw(payload, shape, target); return nullptr;
    case Kind::constant: fill(payload[0], shape, target); return nullptr;
    case Kind::coded: return decode_coded(payload, bytes, shape, entry.mark, target);
  }
  return "it has no known kind";
}

}  // namespace

const Kernel& kernel() { return pick(kKernels); }

BlockShape block_shape(const Geometry& geometry, int64_t block) {
  const int64_t k = block % geometry.k_blocks() * kBlockK, n = block / geometry.k_blocks() * kBlockN;
  return {k, n, std::min(kBlockK, geometry.k - k), std::min(kBlockN, geometry.n - n)};
}

Entry read_entry(const uint8_t* index, int64_t block) {
  Entry entry;
  std::memcpy(&entry, index + block * kEntryBytes, sizeof(entry));
  return entry;
}

uint32_t block_seed(const Geometry& geometry, int64_t block, uint8_t kind) {
  uint64_t seed = kMark1;
  for (const int64_t part : {geometry.k, geometry.n, block, int64_t{kind}}) {
    seed = (seed ^ static_cast<uint64_t>(part)) * 0x9e3779b97f4a7c15u;
    seed ^= seed >> 32;
  }
  return static_cast<uint32_t>(seed);
}

LaneTable lane_table(const Table* const (&tables)[4]) {
  LaneTable lanes;
  for (int lane = 0; lane < 4; ++lane) {
    std::memcpy(lanes.base + lane * kClasses, tables[lane]->base, kClasses);
    std::memcpy(lanes.mask + lane * kClasses, tables[lane]->mask, kClasses);
  }
  return lanes;
}

int64_t set_rank_bases(Table* table) {
  int64_t base = 0;
  for (int i = 0; i < kClasses; base += table->mask[i++] + 1) table->base[i] = static_cast<uint8_t>(base);
  return std::min<int64_t>(base, 256);
}

bool rank_map(const uint8_t* order, uint8_t* map) {
  if (*std::max_element(order, order + kClasses) > kMaxOrderWeight) return false;
  kernel().sort_pairs(order, map);
  return true;
}

const char* find_blocks(const Stream& stream, int64_t* offsets, int64_t* block) {
  int64_t at = 0;
  for (*block = 0; *block < stream.geometry.blocks(); ++*block) {
    const Entry entry = read_entry(stream.index, *block);
    if (const char* error = check_entry(entry, block_shape(stream.geometry, *block).values())) return error;
    offsets[*block] = at;
    at += 8 * int64_t{entry.words};
  }
  *block = stream.geometry.blocks() - 1;
  return at == stream.bytes ? nullptr : "does not end where the stream ends";
}

const char* decode_block(const Stream& stream, int64_t block, uint8_t* values) {
  return decode(stream, block, {values, nullptr, nullptr});
}

const char* decode_to_nibbles(const Stream& stream, int64_t block, uint8_t* values, Nibbles* nibbles) {
  if (nibbles != nullptr) nibbles->classes = nullptr;
  return decode(stream, block, {values, nibbles, nullptr});
}

const char* decode_to_rows(const Stream& stream, int64_t block, int8_t* weight) {
  alignas(64) uint8_t panel[kMaxBlockValues / 2];
  const Rows rows = {weight, stream.geometry};
  return decode(stream, block, {panel, nullptr, &rows});
}

}  // namespace anynpu::codec
