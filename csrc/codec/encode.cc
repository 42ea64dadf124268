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
constexpr int64_t kBoxesLoss = 32;
constexpr uint32_t kSampled = 4;  // one of so many class nibbles is counted to choose boxes
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
void tile_column(const int8_t* row, int64_t k_stride, int64_t column, int64_t k, const BlockShape& shape, uint8_t* panel) {
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
    for (int64_t column = 0; column < columns; ++column) {
      tile_column(rows + column * matrix.n_stride, matrix.k_stride, column, column < whole ? 4 * steps : 0, shape, values);
    }
  }
}

// Neighbours count in different tables, so that equal ones do not wait for each other.
constexpr int kCounters = 4;
using Counters = uint32_t[kCounters][256];

void count_column(const int8_t* from, int64_t stride, int64_t count, Counters& counts) {
  int64_t i = 0;
  for (; stride == 1 && i + 8 <= count; i += 8) {
    uint64_t eight;
    std::memcpy(&eight, from + i, sizeof(eight));
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j, eight >>= 8) ++counts[j % kCounters][eight & 255];
  }
  for (; i < count; ++i) ++counts[0][static_cast<uint8_t>(from[i * stride])];
}

uint32_t sum_of_counters(const Counters& counts, int value) {
  return counts[0][value] + counts[1][value] + counts[2][value] + counts[3][value];
}

// Counts 8 of every 8 * `part` bytes, other ones in each panel's step, as `part` bytes each.
void count_bytes(const uint8_t* bytes, int64_t count, uint32_t part, Histogram& total) {
  Counters counts = {};
  const int64_t eights = count / 8;
  for (int64_t i = 0; i * part < eights; ++i) {
    const int64_t at = i * part + (i / 4 + i) % part;
    count_column(reinterpret_cast<const int8_t*>(bytes) + 8 * at, 1, 8, counts);
  }
  for (int value = 0; value < 256; ++value) total[value] = part * sum_of_counters(counts, value);
}

// Counts value + 128 of each 16 columns apart, and of all of them.
void count_values(const Matrix& matrix, const BlockShape& shape, Histogram (&groups)[kColumnGroups], Histogram& total) {
  constexpr int64_t kColumns = kBlockN / kColumnGroups;
  std::memset(total, 0, sizeof(Histogram));
  for (int64_t group = 0; group < kColumnGroups; ++group) {
    const int64_t first = group * kColumns, end = std::min(first + kColumns, shape.n_count);
    Counters counts = {};
    for (int64_t n = first; n < end; ++n) {
      const int8_t* from = matrix.data + (shape.n + n) * matrix.n_stride + shape.k * matrix.k_stride;
      count_column(from, matrix.k_stride, shape.k_count, counts);
    }
    const bool exists = first < shape.panels() * kPanelColumns;
    const int64_t padded = exists ? kColumns * 4 * shape.steps() : 0, real = std::max<int64_t>(0, end - first) * shape.k_count;
    counts[0][0] += static_cast<uint32_t>(padded - real);
    for (int value = 0; value < 256; ++value) {
      groups[group][value ^ 128] = sum_of_counters(counts, value);
    }
    for (int value = 0; value < 256; ++value) total[value] += groups[group][value];
  }
}

}  // namespace

struct Encoder::Work {
  uint8_t values[kMaxBlockValues];
  uint8_t codes[kChunk];
  uint8_t classes[kChunk];
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
  const LaneTable lanes = lane_table({&chosen.table, &chosen.table, &chosen.table, &chosen.table});
  for (int64_t at = 0; at < count; at += kChunk) {
    const int64_t size = std::min(kChunk, count - at);
    const uint8_t* lower = nibbles_of[level - 1] + at;
    std::memcpy(classes, lower, static_cast<size_t>(size));
    kernel().permute(chosen.class_of, 256, size, classes);
    kernel().pack(lower, classes, size, &lanes, true, nibbles_of[level] + at / 2, sink);
  }
}

void Encoder::Work::encode_ranks(int level, int64_t count, const Histogram& pairs, BitSink* sink) {
  choose_order(pairs, order[level]);
  uint8_t map[256], rank_of[256], ranks[kChunk];
  rank_map(order[level], map);
  Histogram by_rank;
  for (int rank = 0; rank < 256; ++rank) {
    rank_of[map[rank]] = static_cast<uint8_t>(rank);
    by_rank[rank] = pairs[map[rank]];
  }
  const Ranges ranges = fit_ranks(by_rank, class_counts[level]);
  table[level] = ranges.table;
  const CutTable cut = cut_table({&ranges, &ranges, &ranges, &ranges});
  const LaneTable lanes = lane_table({&ranges.table, &ranges.table, &ranges.table, &ranges.table});
  for (int64_t at = 0; at < count; at += kChunk) {
    const int64_t size = std::min(kChunk, count - at);
    std::memcpy(ranks, nibbles_of[level - 1] + at, static_cast<size_t>(size));
    kernel().permute(rank_of, 256, size, ranks);
    kernel().classify(ranks, size, &cut, true, false, codes, classes);
    kernel().pack(codes, classes, size, &lanes, true, nibbles_of[level] + at / 2, sink);
  }
}

// Codes the nibbles of the level below, `count` bytes of two, once more: in boxes, which decode faster, unless they cost more.
void Encoder::Work::encode_nibbles(int level, int64_t count, int64_t bits_so_far) {
  Histogram pairs;
  count_bytes(nibbles_of[level - 1], count, kSampled, pairs);
  const Boxes chosen = cut_boxes(pairs);
  const int64_t loss = lost_bits(chosen, pairs, count);
  BitSink sink = {extras_of[level], 0, 0};
  boxes[level] = (lost + loss) * kBoxesLoss <= bits_so_far;
  if (boxes[level]) {
    lost += loss;
    encode_boxes(level, count, chosen, &sink);
  } else {
    count_bytes(nibbles_of[level - 1], count, 1, pairs);
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
  Histogram groups[kColumnGroups], total;
  count_values(matrix, shape, groups, total);
  Kind kind = Kind::coded;
  int64_t bytes = 8;
  if (total[work.values[0]] == count) {
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
