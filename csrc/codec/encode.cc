// SPDX-License-Identifier: Apache-2.0
#include "codec/encode.h"

#include <algorithm>
#include <cstring>
#include <new>

#include "codec/decode.h"
#include "codec/fit.h"
#include "codec/kernel.h"

namespace anynpu::codec {
namespace {

// All levels of boxes may lose this part of the whole to an ideal code.
constexpr int64_t kBoxesLoss = 40;
// Of the codes of a level a part is counted that holds at least so many of them, but no less than a quarter.
constexpr int64_t kEnoughValues = 4096, kEnoughNibbles = 1024;
constexpr int kLeastPartLog2 = 2;
constexpr int64_t kChunk = 4096;  // codes that are classified before they are packed, so that both stay in the L1 cache

void write_bits(const Table& table, uint8_t* to) {
  const auto bits = [&](int i) { return __builtin_popcount(table.mask[i]); };
  for (int i = 0; i < kClasses / 2; ++i) to[i] = static_cast<uint8_t>(bits(2 * i) | bits(2 * i + 1) << 4);
}

CutTable cut_table(const Ranges* const (&lanes)[4]) {
  CutTable cut = {};
  for (int lane = 0; lane < 4; ++lane) {
    std::memcpy(cut.class_of + lane * kClasses, lanes[lane]->class_of, kClasses);
    for (int node = 1; node < kClasses; ++node) {
      // A node of step s halves what its 2^s neighbours leave of the ranges.
      const int step = 31 - __builtin_clz(static_cast<unsigned>(node)), width = kClasses >> step;
      const int range = (node - (1 << step)) * width + width / 2;
      cut.bound[lane * kClasses + node] =
          static_cast<int8_t>(range < lanes[lane]->count ? lanes[lane]->first[range] - 129 : 127);
    }
  }
  return cut;
}

// The bytes of a sink, the last one filled up.
uint8_t* sink_end(const BitSink& sink) { return sink.to + (sink.filled + 7) / 8; }

// Values k and later of a column, and zeros up to a whole step.
void tile_column(const int8_t* row, int64_t k_stride, int64_t column, int64_t k, const BlockShape& shape,
                 uint8_t* panel) {
  for (; k < 4 * shape.steps(); ++k) {
    const int value = k < shape.k_count ? row[k * k_stride] : 0;
    panel[(k / 4 * kPanelColumns + column) * 4 + k % 4] = static_cast<uint8_t>(value + 128);
  }
}

// [panels][steps][64 columns][4 k] of value + 128; beyond the matrix 0 + 128.
void tile(const Matrix& matrix, const BlockShape& shape, uint8_t* values) {
  for (int64_t n = 0; n < shape.n_count; n += kPanelColumns, values += shape.panel_values()) {
    const int8_t* rows = matrix.data + (shape.n + n) * matrix.n_stride + shape.k * matrix.k_stride;
    const int64_t columns = std::min(kPanelColumns, shape.n_count - n), whole = columns / kTile * kTile;
    const int64_t steps = matrix.k_stride == 1 ? shape.k_count / 4 / kTile * kTile : 0;
    if (columns < kPanelColumns) std::memset(values, 0x80, static_cast<size_t>(shape.panel_values()));
    kernel().tile(rows, matrix.n_stride, whole, steps, values);
    for (int64_t column = steps < shape.steps() ? 0 : whole; column < columns; ++column) {
      tile_column(rows + column * matrix.n_stride, matrix.k_stride, column, column < whole ? 4 * steps : 0, shape,
                  values);
    }
  }
}

// One of how many of `count` codes is counted, as a power of two.
int counted_part_log2(int64_t count, int64_t enough) {
  int log2 = 0;
  while (log2 < kLeastPartLog2 && count >> (log2 + 1) >= enough) ++log2;
  return log2;
}

// Counts a part of the `width` bytes at each place, `count` times, `stride` bytes on and another part each time.
// Neighbours have a histogram each, so that equal ones do not wait for each other.
void count_parts(const uint8_t* const (&places)[kColumnGroups], int64_t count, int64_t stride, int64_t width,
                 int part_log2, Counts (&counts)[kColumnGroups]) {
  std::memset(counts, 0, sizeof(counts));
  const int64_t part = width >> part_log2, parts = int64_t{1} << part_log2;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t first = i * stride + ((i + (i >> part_log2)) & (parts - 1)) * part;
    for (int64_t at = first; at < first + part; ++at) {
#pragma GCC unroll 8
      for (int place = 0; place < kColumnGroups; ++place) ++counts[place].of[places[place][at]];
    }
  }
}

void scale_up(Histogram& counts, int part_log2) {
  for (uint32_t& count : counts) count <<= part_log2;
}

void sum_up(const Counts (&counts)[kColumnGroups], Histogram& total) {
  for (int code = 0; code < 256; ++code) {
    uint32_t sum = 0;
    for (const Counts& at_place : counts) sum += at_place.of[code];
    total[code] = sum;
  }
}

// Counts bytes of two class nibbles.
void count_nibbles(const uint8_t* nibbles, int64_t count, int part_log2, Histogram& total) {
  constexpr int64_t kWidth = kPiece / kColumnGroups;
  const uint8_t* places[kColumnGroups];
  for (int64_t i = 0; i < kColumnGroups; ++i) places[i] = nibbles + i * kWidth;
  Counts counts[kColumnGroups];
  count_parts(places, count / kPiece, kPiece, kWidth, part_log2, counts);
  sum_up(counts, total);
  scale_up(total, part_log2);
}

}  // namespace

struct Encoder::Work {
  uint8_t values[kMaxBlockValues];
  uint8_t codes[kChunk];
  uint8_t classes[kChunk];
  uint8_t ranks[kMaxBlockValues / 2];
  uint8_t nibbles[kMaxBlockValues];          // of all levels, one after the other
  uint8_t extras[2 * kMaxBlockValues + 64];  // likewise
  // By level.
  uint8_t* nibbles_of[kMaxLevels + 2];
  uint8_t* extras_of[kMaxLevels + 2];
  bool boxes[kMaxLevels + 1];
  uint8_t order[kMaxLevels + 1][kClasses];
  Table table[kMaxLevels + 1];
  ClassCounts class_counts[kMaxLevels + 1];
  int64_t lost;  // bits, by boxes

  void count_values(const BlockShape& shape, int part_log2, Counts (&groups)[kColumnGroups], Counts* total) const;
  void encode_values(const BlockShape& shape, const Coding& coding);
  void encode_nibbles(int level, int64_t count, int64_t bits_so_far);
  void encode_boxes(int level, int64_t count, const Boxes& boxes, BitSink* sink);
  void encode_ranks(int level, int64_t count, const Histogram& pairs, BitSink* sink);
  int64_t tables_bytes(const Coding& coding, int levels) const;
  int64_t write_payload(const Coding& coding, int levels, int64_t values, uint8_t* payload) const;
  int64_t payload_bytes(const Coding& coding, int levels, int64_t values) const;
};

Encoder::Encoder() : work_(new (std::nothrow) Work) {}
Encoder::~Encoder() { delete work_; }

// Counts the codes of each 16 columns, and of all of them.
void Encoder::Work::count_values(const BlockShape& shape, int part_log2, Counts (&groups)[kColumnGroups],
                                 Counts* total) const {
  const int64_t steps = shape.steps(), stride = kPanelPieces * kPiece, used = shape.panels() * kPanelPieces;
  const uint8_t* places[kColumnGroups];
  for (int64_t i = 0; i < kColumnGroups; ++i) {
    places[i] = values + (i < used ? i : 0) / kPanelPieces * shape.panel_values() + i % kPanelPieces * kPiece;
  }
  count_parts(places, steps, stride, kPiece, part_log2, groups);
  for (int64_t i = used; i < kColumnGroups; ++i) groups[i] = {};
  for (Counts& group : groups) scale_up(group.of, part_log2);
  sum_up(groups, total->of);
  total->first = 256;
  total->end = 0;
  for (int64_t i = 0; i < used; ++i) {
    uint8_t least, largest;
    kernel().extent(places[i], steps, stride, &least, &largest);
    groups[i].first = least;
    groups[i].end = largest + 1;
    total->first = std::min(total->first, groups[i].first);
    total->end = std::max(total->end, groups[i].end);
  }
  total->complete = part_log2 == 0;
  for (Counts& group : groups) group.complete = total->complete;
}

void Encoder::Work::encode_values(const BlockShape& shape, const Coding& coding) {
  BitSink sink = {extras_of[1], 0, 0};
  const bool one_table = coding.tables_log2 == 0;
  const int64_t parts = one_table ? 1 : shape.panels(), count = shape.values() / parts;
  for (int64_t part = 0; part < parts; ++part) {
    CutTable cuts[kPanelPieces];
    LaneTable lanes[kPanelPieces];
    for (int64_t piece = 0; piece < (one_table ? 1 : kPanelPieces); ++piece) {
      const Ranges& ranges = coding.tables[one_table ? 0 : part * kPanelPieces + piece];
      cuts[piece] = cut_table({&ranges, &ranges, &ranges, &ranges});
      lanes[piece] = lane_table({&ranges.table, &ranges.table, &ranges.table, &ranges.table});
    }
    for (int64_t at = part * count; at < (part + 1) * count; at += kChunk) {
      const int64_t size = std::min(kChunk, (part + 1) * count - at);
      kernel().classify(values + at, size, cuts, one_table, coding.folded, codes, classes);
      kernel().pack(codes, classes, size, lanes, one_table, nibbles_of[1] + at / 2, &sink);
    }
  }
  nibbles_of[2] = nibbles_of[1] + shape.values() / 2;
  extras_of[2] = sink_end(sink);
}

void Encoder::Work::encode_boxes(int level, int64_t count, const Boxes& chosen, BitSink* sink) {
  table[level] = chosen.table;
  std::copy_n(chosen.counts, kClasses, class_counts[level]);
  uint8_t class_of[256];
  map_boxes(chosen.table, class_of);
  const LaneTable lanes = lane_table({&chosen.table, &chosen.table, &chosen.table, &chosen.table});
  for (int64_t at = 0; at < count; at += kChunk) {
    const int64_t size = std::min(kChunk, count - at);
    const uint8_t* lower = nibbles_of[level - 1] + at;
    kernel().permute(class_of, 256, size, lower, classes);
    kernel().pack(lower, classes, size, &lanes, true, nibbles_of[level] + at / 2, sink);
  }
}

void Encoder::Work::encode_ranks(int level, int64_t count, const Histogram& pairs, BitSink* sink) {
  choose_order(pairs, order[level]);
  uint8_t map[256], rank_of[256];
  rank_map(order[level], map);
  Counts by_rank = {};
  for (int rank = 0; rank < 256; ++rank) {
    rank_of[map[rank]] = static_cast<uint8_t>(rank);
    by_rank.of[rank] = pairs[map[rank]];
  }
  kernel().permute(rank_of, 256, count, nibbles_of[level - 1], ranks);
  uint8_t least, largest;
  kernel().extent(ranks, count / kPiece, kPiece, &least, &largest);
  by_rank.end = largest + 1;
  const Ranges ranges = fit_ranks(by_rank, class_counts[level]);
  table[level] = ranges.table;
  const CutTable cut = cut_table({&ranges, &ranges, &ranges, &ranges});
  const LaneTable lanes = lane_table({&ranges.table, &ranges.table, &ranges.table, &ranges.table});
  for (int64_t at = 0; at < count; at += kChunk) {
    const int64_t size = std::min(kChunk, count - at);
    kernel().classify(ranks + at, size, &cut, true, false, codes, classes);
    kernel().pack(codes, classes, size, &lanes, true, nibbles_of[level] + at / 2, sink);
  }
}

// Codes the nibbles of the level below, `count` bytes of two, once more: in boxes, which decode faster, unless they
// cost too much.
void Encoder::Work::encode_nibbles(int level, int64_t count, int64_t bits_so_far) {
  Histogram pairs;
  const int part_log2 = counted_part_log2(count, kEnoughNibbles);
  count_nibbles(nibbles_of[level - 1], count, part_log2, pairs);
  const Boxes chosen = cut_boxes(pairs);
  const int64_t loss = chosen.bits - ideal_bits(pairs, part_log2);
  BitSink sink = {extras_of[level], 0, 0};
  boxes[level] = chosen.bits < 8 * count && (lost + loss) * kBoxesLoss <= bits_so_far;
  if (boxes[level]) {
    lost += loss;
    encode_boxes(level, count, chosen, &sink);
  } else {
    encode_ranks(level, count, pairs, &sink);
  }
  nibbles_of[level + 1] = nibbles_of[level] + count / 2;
  extras_of[level + 1] = sink_end(sink);
}

int64_t Encoder::Work::tables_bytes(const Coding& coding, int levels) const {
  int64_t bytes = kTableBytes << coding.tables_log2;
  for (int level = 2; level <= levels; ++level) bytes += boxes[level] ? kBoxesBytes : kRanksBytes;
  return bytes;
}

int64_t Encoder::Work::payload_bytes(const Coding& coding, int levels, int64_t values) const {
  const int64_t extras_bytes = extras_of[levels + 1] - extras_of[1];
  return (kHeaderBytes + tables_bytes(coding, levels) + extras_bytes + (values >> levels) + 7) / 8 * 8;
}

int64_t Encoder::Work::write_payload(const Coding& coding, int levels, int64_t values, uint8_t* payload) const {
  const int64_t bytes = payload_bytes(coding, levels, values);
  std::memset(payload, 0, kHeaderBytes);
  payload[0] = static_cast<uint8_t>(levels);
  payload[1] = coding.folded;
  payload[2] = static_cast<uint8_t>(coding.tables_log2);
  uint8_t* to = payload + kHeaderBytes;
  for (int i = 0; i < 1 << coding.tables_log2; ++i, to += kTableBytes) {
    std::memcpy(to, coding.tables[i].table.base, kClasses);
    write_bits(coding.tables[i].table, to + kClasses);
  }
  for (int level = 2; level <= levels; ++level) {
    if (boxes[level]) {
      payload[3] = static_cast<uint8_t>(payload[3] | 1 << (level - 2));
      std::memcpy(to, &table[level], kBoxesBytes);
      to += kBoxesBytes;
    } else {
      std::memcpy(to, order[level], kClasses);
      write_bits(table[level], to + kClasses);
      to += kRanksBytes;
    }
  }
  for (int level = levels; level >= 1; --level) {
    const int64_t count = extras_of[level + 1] - extras_of[level];
    payload[2 + 2 * level] = static_cast<uint8_t>(count);
    payload[3 + 2 * level] = static_cast<uint8_t>(count >> 8);
    std::memcpy(to, extras_of[level], static_cast<size_t>(count));
    to += count;
  }
  std::memcpy(to, nibbles_of[levels], static_cast<size_t>(values >> levels));
  to += values >> levels;
  std::memset(to, 0, static_cast<size_t>(payload + bytes - to));
  return bytes;
}

Entry Encoder::encode_block(const Matrix& matrix, int64_t block, uint8_t* payload) {
  const BlockShape shape = block_shape(matrix.geometry, block);
  const int64_t count = shape.values();
  Work& work = *work_;
  tile(matrix, shape, work.values);
  Counts groups[kColumnGroups], total;
  work.count_values(shape, counted_part_log2(count, kEnoughValues), groups, &total);
  if (!total.complete && has_gaps(total)) work.count_values(shape, 0, groups, &total);
  Kind kind = Kind::coded;
  int64_t bytes = 8;
  if (total.first + 1 == total.end) {
    kind = Kind::constant;
    std::memset(payload, 0, 8);
    payload[0] = work.values[0];
  } else {
    work.nibbles_of[1] = work.nibbles;
    work.extras_of[1] = work.extras;
    work.lost = 0;
    const Coding coding = choose_coding(groups, total, work.class_counts[1]);
    work.encode_values(shape, coding);
    int levels = 1;
    int64_t least = work.payload_bytes(coding, 1, count);
    for (int level = 2; levels_fit(count, level); ++level) {
      if (!worth_coding(level, work.class_counts[level - 1], 8 * least)) break;
      work.encode_nibbles(level, count >> (level - 1), 8 * least);
      const int64_t size = work.payload_bytes(coding, level, count);
      if (size < least) least = size, levels = level;
    }
    if (least < count) {
      bytes = work.write_payload(coding, levels, count, payload);
    } else {
      kind = Kind::raw;
      bytes = count;
      std::memcpy(payload, work.values, static_cast<size_t>(count));
    }
  }
  const uint8_t kind_byte = static_cast<uint8_t>(kind);
  const uint32_t checksum = kernel().checksum(payload, bytes, block_seed(matrix.geometry, block, kind_byte));
  return {checksum, static_cast<uint16_t>(bytes / 8), kind_byte, kMark};
}

}  // namespace anynpu::codec
