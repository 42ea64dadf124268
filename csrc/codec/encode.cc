// SPDX-License-Identifier: Apache-2.0
#include "codec/encode.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>
#include <numeric>

#include "codec/decode.h"

namespace anynpu::codec {
namespace {

using Histogram = uint32_t[256];

constexpr int kColumnGroups = 8;  // of 16 columns, counted apart
constexpr int kGroupsLog2 = 3;
// What a further coding must save, in parts of the whole, to be worth its decoding time.
constexpr int64_t kWorthwhile = 64;

// log2(count) * 2^16.
int64_t log2_fixed(uint32_t count) {
  static const auto table = [] {
    struct { int32_t of[257]; } logs;
    for (int i = 0; i <= 256; ++i) logs.of[i] = static_cast<int32_t>(std::lround(std::log2(1.0 + i / 256.0) * 65536));
    return logs;
  }();
  const int exponent = 31 - __builtin_clz(count);
  const uint32_t fraction = count << (31 - exponent) << 1;  // 32 bits after the leading one
  const uint32_t index = fraction >> 24, rest = fraction >> 8 & 0xffff;
  const int64_t low = table.of[index], high = table.of[index + 1];
  return (int64_t{exponent} << 16) + low + ((high - low) * rest >> 16);
}

// Bits of an ideal order-0 code.
int64_t entropy_bits(const uint32_t* histogram, int size) {
  int64_t total = 0, weighted = 0;
  for (int i = 0; i < size; ++i) {
    if (histogram[i] == 0) continue;
    total += histogram[i];
    weighted += histogram[i] * log2_fixed(histogram[i]);
  }
  return total == 0 ? 0 : (total * log2_fixed(static_cast<uint32_t>(total)) - weighted) >> 16;
}

// Chooses at most 16 ranges of 2^b codes that cover every code that occurs with the fewest extra bits, by dynamic
// programming over [0, code) and the number of ranges. With `gaps`, codes that do not occur need no range; without, the
// ranges follow each other from 0. Returns the extra bits.
int64_t fit_table(const Histogram& histogram, bool gaps, Table* table) {
  constexpr int32_t kNever = 1 << 29;
  int32_t cost[257][kClasses + 1];
  uint16_t from[257][kClasses + 1];  // start << 3 | bits, or kSkip
  constexpr uint16_t kSkip = 0xffff;
  int32_t before[257] = {};
  int low = 256, high = 0;
  for (int code = 0; code < 256; ++code) {
    before[code + 1] = before[code] + static_cast<int32_t>(histogram[code]);
    if (histogram[code] != 0) low = std::min(low, code), high = code + 1;
  }
  *table = {};
  if (high == 0) return 0;
  if (!gaps) low = 0;
  for (int code = low; code <= high; ++code) std::fill_n(cost[code], kClasses + 1, kNever);
  cost[low][0] = 0;
  for (int start = low; start < high; ++start) {
    if (gaps && histogram[start] == 0) {
      for (int used = 0; used <= kClasses; ++used) {
        if (cost[start][used] >= cost[start + 1][used]) continue;
        cost[start + 1][used] = cost[start][used];
        from[start + 1][used] = kSkip;
      }
      continue;
    }
    for (int bits = 0; bits <= kMaxClassBits; ++bits) {
      if (!gaps && start + (1 << bits) > 256) break;
      const int end = std::min(start + (1 << bits), high);
      const int32_t extra = bits * (before[end] - before[start]);
      const uint16_t step = static_cast<uint16_t>(start << 3 | bits);
      for (int used = 0; used < kClasses; ++used) {
        const bool better = cost[start][used] + extra < cost[end][used + 1];
        cost[end][used + 1] = better ? cost[start][used] + extra : cost[end][used + 1];
        from[end][used + 1] = better ? step : from[end][used + 1];
      }
      if (end == high) break;
    }
  }
  int used = static_cast<int>(std::min_element(cost[high], cost[high] + kClasses + 1) - cost[high]);
  const int64_t bits = cost[high][used];
  for (int end = high; used > 0;) {
    const uint16_t step = from[end][used];
    if (step == kSkip) {
      --end;
      continue;
    }
    end = step >> 3;
    --used;
    table->bits[used] = step & 7;
    table->base[used] = static_cast<uint8_t>(std::min(end, 256 - (1 << table->bits[used])));
  }
  return bits;
}

void write_bits(const Table& table, uint8_t* to) {
  for (int i = 0; i < kClasses / 2; ++i) to[i] = static_cast<uint8_t>(table.bits[2 * i] | table.bits[2 * i + 1] << 4);
}

// code -> extra bits | bit count << 8 | class << 12.
using Codebook = uint16_t[256];

void fill_codebook(const Table& table, Codebook& book) {
  for (int i = kClasses - 1; i >= 0; --i) {
    for (int extra = 0; extra < 1 << table.bits[i]; ++extra) {
      book[table.base[i] + extra] = static_cast<uint16_t>(extra | table.bits[i] << 8 | i << 12);
    }
  }
}

// Appends the extra bits of eight codes; at most 56 of them.
struct BitSink {
  uint8_t* to;
  uint64_t pending = 0;
  int filled = 0;  // bits of pending, below 8 between calls

  void append(uint64_t bits, int count) {
    pending |= bits << filled;
    filled += count;
    std::memcpy(to, &pending, sizeof(pending));
    to += filled / 8;
    pending >>= filled / 8 * 8;
    filled %= 8;
  }
  uint8_t* end() const { return to + (filled + 7) / 8; }
};

void encode_group(const uint8_t* codes, const Codebook& book, uint8_t* nibbles, BitSink* extras) {
  uint64_t bits = 0, classes = 0;
  int count = 0;
  for (int i = 0; i < 8; ++i) {
    const uint32_t entry = book[codes[i]];
    bits |= uint64_t{entry & 255} << count;
    count += static_cast<int>(entry >> 8 & 15);
    classes |= uint64_t{entry >> 12} << (4 * i);
  }
  const uint32_t packed = static_cast<uint32_t>(classes);
  std::memcpy(nibbles, &packed, sizeof(packed));
  extras->append(bits, count);
}

uint8_t fold(uint8_t biased) { return static_cast<uint8_t>(biased >= 128 ? 2 * (biased - 128) : 255 - 2 * biased); }

void fold(const Histogram& plain, Histogram& folded) {
  for (int value = 0; value < 256; ++value) folded[fold(static_cast<uint8_t>(value))] = plain[value];
}

// Level 1 of a block.
struct Coding {
  bool folded;
  int tables_log2;
  Table tables[kColumnGroups];
};

// Folding orders codes by magnitude, which suits distributions around zero; others keep their order.
bool wants_fold(const Histogram& total) {
  const uint64_t below = std::accumulate(total, total + 128, uint64_t{0});
  const uint64_t above = std::accumulate(total + 129, total + 256, uint64_t{0});
  return 8 * std::min(below, above) > std::max(below, above);
}

int64_t fit_histogram(const Histogram& plain, bool folded, Table* table) {
  if (!folded) return fit_table(plain, true, table);
  Histogram codes;
  fold(plain, codes);
  return fit_table(codes, true, table);
}

// One table for the block, or one for each 16 columns where their spreads differ enough.
Coding choose_coding(const Histogram (&groups)[kColumnGroups], const Histogram& total) {
  Coding coding = {wants_fold(total), 0, {}};
  const int64_t together = fit_histogram(total, coding.folded, &coding.tables[0]);
  int64_t entropy_apart = 0;
  for (const Histogram& group : groups) entropy_apart += entropy_bits(group, 256);
  const int64_t entropy = entropy_bits(total, 256);
  if ((entropy - entropy_apart) * kWorthwhile < entropy) return coding;
  Coding apart = {coding.folded, kGroupsLog2, {}};
  int64_t bits = 8 * kTableBytes * (kColumnGroups - 1);
  for (int i = 0; i < kColumnGroups; ++i) bits += fit_histogram(groups[i], apart.folded, &apart.tables[i]);
  return bits < together ? apart : coding;
}

// Weights of the classes for rank_map: -8 log2 of their share.
void choose_order(const Histogram& pairs, uint8_t (&order)[kClasses]) {
  uint32_t classes[kClasses] = {};
  for (int pair = 0; pair < 256; ++pair) {
    classes[pair & 15] += pairs[pair];
    classes[pair >> 4] += pairs[pair];
  }
  const int64_t total = log2_fixed(std::accumulate(classes, classes + kClasses, 0u));
  for (int i = 0; i < kClasses; ++i) {
    const int64_t weight = classes[i] == 0 ? kMaxOrderWeight : (total - log2_fixed(classes[i]) + (1 << 12)) >> 13;
    order[i] = static_cast<uint8_t>(std::min<int64_t>(weight, kMaxOrderWeight));
  }
}

// [panels][steps][64 columns][4 k] of value + 128; beyond the matrix 0 + 128.
void gather(const Matrix& matrix, const BlockShape& shape, uint8_t* values) {
  for (int64_t panel = 0; panel < shape.panels(); ++panel, values += shape.panel_values()) {
    for (int64_t column = 0; column < kPanelColumns; ++column) {
      const int64_t n = panel * kPanelColumns + column;
      if (n >= shape.n_count) {
        for (int64_t step = 0; step < shape.steps(); ++step) {
          std::memset(values + (step * kPanelColumns + column) * 4, 0x80, 4);
        }
        continue;
      }
      const int8_t* from = matrix.data + (shape.n + n) * matrix.n_stride + shape.k * matrix.k_stride;
      for (int64_t step = 0; step < shape.steps(); ++step) {
        const int64_t count = std::min<int64_t>(4, shape.k_count - 4 * step);
        uint32_t word = 0;
        if (matrix.k_stride == 1 && count == 4) {
          std::memcpy(&word, from + 4 * step, sizeof(word));
        } else {
          for (int64_t i = 0; i < count; ++i) {
            word |= uint32_t{static_cast<uint8_t>(from[(4 * step + i) * matrix.k_stride])} << (8 * i);
          }
        }
        word ^= 0x80808080u;
        std::memcpy(values + (step * kPanelColumns + column) * 4, &word, sizeof(word));
      }
    }
  }
}

}  // namespace

struct Encoder::Work {
  uint8_t values[kMaxBlockValues];
  uint8_t nibbles[kMaxBlockValues];     // of all levels, one after the other
  uint8_t extras[2 * kMaxBlockValues];  // likewise
  // By level.
  uint8_t* nibbles_of[kMaxLevels + 2];
  uint8_t* extras_of[kMaxLevels + 2];
  uint8_t order[kMaxLevels + 1][kClasses];
  Table table[kMaxLevels + 1];

  Coding encode_values(const BlockShape& shape, const Histogram (&groups)[kColumnGroups], const Histogram& total);
  bool encode_nibbles(int level, int64_t count, int64_t bits_so_far);
  int64_t write_payload(const Coding& coding, int levels, int64_t values, uint8_t* payload) const;
  int64_t payload_bytes(const Coding& coding, int levels, int64_t values) const;
};

Encoder::Encoder() : work_(new (std::nothrow) Work) {}
Encoder::~Encoder() { delete work_; }

Coding Encoder::Work::encode_values(const BlockShape& shape, const Histogram (&groups)[kColumnGroups],
                                    const Histogram& total) {
  const Coding coding = choose_coding(groups, total);
  Codebook books[kColumnGroups];
  for (int i = 0; i < 1 << coding.tables_log2; ++i) {
    Codebook folded;
    Codebook& book = coding.folded ? folded : books[i];
    fill_codebook(coding.tables[i], book);
    for (int value = 0; coding.folded && value < 256; ++value) books[i][value] = folded[fold(static_cast<uint8_t>(value))];
  }
  BitSink sink = {extras_of[1]};
  const uint8_t* from = values;
  uint8_t* to = nibbles_of[1];
  for (int64_t panel = 0; panel < shape.panels(); ++panel) {
    for (int64_t i = 0; i < shape.panel_values(); i += 8, from += 8, to += 4) {
      encode_group(from, books[table_of_lane(panel * 16 + i / 16 % 16, coding.tables_log2)], to, &sink);
    }
  }
  nibbles_of[2] = nibbles_of[1] + shape.values() / 2;
  extras_of[2] = sink.end();
  return coding;
}

// Codes the nibbles of the level below, `count` bytes of two, once more. False when that cannot be worthwhile.
bool Encoder::Work::encode_nibbles(int level, int64_t count, int64_t bits_so_far) {
  const uint8_t* lower = nibbles_of[level - 1];
  Histogram pairs = {};
  for (int64_t i = 0; i < count; ++i) ++pairs[lower[i]];
  const int64_t saved = 8 * count - entropy_bits(pairs, 256) - 8 * kLevelBytes;
  if (saved * kWorthwhile < bits_so_far) return false;
  choose_order(pairs, order[level]);
  uint8_t map[256], rank_of[256];
  rank_map(order[level], map);
  Histogram ranks;
  for (int rank = 0; rank < 256; ++rank) {
    rank_of[map[rank]] = static_cast<uint8_t>(rank);
    ranks[rank] = pairs[map[rank]];
  }
  fit_table(ranks, false, &table[level]);
  Codebook by_rank, book;
  fill_codebook(table[level], by_rank);
  for (int pair = 0; pair < 256; ++pair) book[pair] = by_rank[rank_of[pair]];
  BitSink sink = {extras_of[level]};
  for (int64_t at = 0; at < count; at += 8) encode_group(lower + at, book, nibbles_of[level] + at / 2, &sink);
  nibbles_of[level + 1] = nibbles_of[level] + count / 2;
  extras_of[level + 1] = sink.end();
  return true;
}

int64_t Encoder::Work::payload_bytes(const Coding& coding, int levels, int64_t values) const {
  const int64_t tables = (kTableBytes << coding.tables_log2) + (levels - 1) * kLevelBytes;
  const int64_t extras_bytes = extras_of[levels + 1] - extras_of[1];
  return (kHeaderBytes + tables + extras_bytes + (values >> levels) + 7) / 8 * 8;
}

int64_t Encoder::Work::write_payload(const Coding& coding, int levels, int64_t values, uint8_t* payload) const {
  const int64_t bytes = payload_bytes(coding, levels, values);
  std::memset(payload, 0, kHeaderBytes);
  payload[0] = static_cast<uint8_t>(levels);
  payload[1] = coding.folded;
  payload[2] = static_cast<uint8_t>(coding.tables_log2);
  uint8_t* to = payload + kHeaderBytes;
  for (int i = 0; i < 1 << coding.tables_log2; ++i, to += kTableBytes) {
    std::memcpy(to, coding.tables[i].base, kClasses);
    write_bits(coding.tables[i], to + kClasses);
  }
  for (int level = 2; level <= levels; ++level, to += kLevelBytes) {
    std::memcpy(to, order[level], kClasses);
    write_bits(table[level], to + kClasses);
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

namespace {

// Counts each 16 columns apart, and all of them.
void count_values(const uint8_t* values, const BlockShape& shape, Histogram (&groups)[kColumnGroups], Histogram& total) {
  std::memset(groups, 0, sizeof(groups));
  for (int64_t panel = 0; panel < shape.panels(); ++panel) {
    for (int64_t piece = 0; piece < 4 * shape.steps(); ++piece, values += kPiece) {
      Histogram& group = groups[panel * 4 + piece % 4];
      for (int64_t i = 0; i < kPiece; ++i) ++group[values[i]];
    }
  }
  for (int value = 0; value < 256; ++value) {
    total[value] = 0;
    for (const Histogram& group : groups) total[value] += group[value];
  }
}

}  // namespace

Entry Encoder::encode_block(const Matrix& matrix, int64_t block, uint8_t* payload) {
  const BlockShape shape = block_shape(matrix.geometry, block);
  const int64_t count = shape.values();
  Work& work = *work_;
  gather(matrix, shape, work.values);
  Histogram groups[kColumnGroups], total;
  count_values(work.values, shape, groups, total);
  Kind kind = Kind::coded;
  int64_t bytes = 8;
  if (total[work.values[0]] == count) {
    kind = Kind::constant;
    std::memset(payload, 0, 8);
    payload[0] = work.values[0];
  } else {
    work.nibbles_of[1] = work.nibbles;
    work.extras_of[1] = work.extras;
    const Coding coding = work.encode_values(shape, groups, total);
    int levels = 1;
    int64_t least = work.payload_bytes(coding, 1, count);
    for (int level = 2; levels_fit(count, level); ++level) {
      if (!work.encode_nibbles(level, count >> (level - 1), 8 * least)) break;
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
