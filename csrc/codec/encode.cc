// SPDX-License-Identifier: Apache-2.0
#include "codec/encode.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>
#include <numeric>

#include "codec/decode.h"
#include "codec/kernel.h"

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

// Bits of an ideal order-0 code; `size` counts that sum to at most kMaxBlockValues.
int64_t entropy_bits(const uint32_t* histogram, int size) {
  constexpr int kScale = 10;  // log2 of the unit of n log2 n
  static const auto table = [] {
    struct { int32_t of[kMaxBlockValues + 1]; } terms;
    terms.of[0] = 0;
    for (uint32_t n = 1; n <= kMaxBlockValues; ++n) terms.of[n] = static_cast<int32_t>(n * log2_fixed(n) >> (16 - kScale));
    return terms;
  }();
  uint32_t total = 0;
  int64_t weighted = 0;
  for (int i = 0; i < size; ++i) {
    total += histogram[i];
    weighted += table.of[histogram[i]];
  }
  return (table.of[total] - weighted) >> kScale;
}

// Ranges of codes, ascending: class c holds the codes from first[c] to below the first of the class after it.
struct Ranges {
  Table table;
  uint8_t first[kClasses];
  int classes;
};

// One more range of `extra` bits. Apart, so that the compiler sees no overlap and makes it four vector minima.
__attribute__((noinline)) void add_range(const float* __restrict from, float extra, float* __restrict to) {
  for (int used = 0; used < kClasses; ++used) {
    to[used + 1] = from[used] + extra < to[used + 1] ? from[used] + extra : to[used + 1];
  }
}

// The least extra bits of every way to cover the codes below an end with a number of ranges.
class RangeCosts {
 public:
  // With `gaps`, codes that do not occur need no range; without, the ranges follow each other from 0.
  RangeCosts(const Histogram& histogram, bool gaps) : histogram_(histogram), gaps_(gaps) {
    before_[0] = 0;
    for (int code = 0; code < 256; ++code) {
      before_[code + 1] = before_[code] + static_cast<int32_t>(histogram[code]);
      if (histogram[code] != 0) low_ = std::min(low_, code), high_ = code + 1;
    }
    if (!gaps || high_ == 0) low_ = 0;  // nothing to cover: no range
    for (int end = low_; end <= high_; ++end) std::fill_n(cost_[end], kClasses + 1, kNever);
    cost_[low_][0] = 0;
    for (int start = low_; start < high_; ++start) extend(start);
  }

  // The cheapest ranges.
  Ranges best() const {
    Ranges ranges = {};
    int used = static_cast<int>(std::min_element(cost_[high_], cost_[high_] + kClasses + 1) - cost_[high_]);
    ranges.classes = used;
    for (int end = high_; used > 0;) {
      if (skips(end - 1) && cost_[end - 1][used] == cost_[end][used]) {
        --end;
        continue;
      }
      --used;
      end = last_range(end, used, &ranges.table.bits[used]);
      ranges.first[used] = static_cast<uint8_t>(end);
      ranges.table.base[used] = static_cast<uint8_t>(std::min(end, 256 - (1 << ranges.table.bits[used])));
    }
    return ranges;
  }

  int64_t extra_bits() const { return static_cast<int64_t>(*std::min_element(cost_[high_], cost_[high_] + kClasses + 1)); }

 private:
  static constexpr float kNever = 1 << 30;

  bool skips(int code) const { return gaps_ && code >= low_ && histogram_[code] == 0; }
  bool fits(int start, int bits) const { return gaps_ || start + (1 << bits) <= 256; }
  float bits_between(int start, int end, int bits) const { return static_cast<float>(bits * (before_[end] - before_[start])); }

  void extend(int start) {
    if (skips(start)) {
      for (int used = 0; used <= kClasses; ++used) {
        cost_[start + 1][used] = std::min(cost_[start + 1][used], cost_[start][used]);
      }
      return;
    }
    for (int bits = 0; bits <= kMaxClassBits && fits(start, bits); ++bits) {
      const int end = std::min(start + (1 << bits), high_);
      add_range(cost_[start], bits_between(start, end, bits), cost_[end]);
      if (end == high_) break;
    }
  }

  // The start of a range that ends here and leaves `used` ranges before it.
  int last_range(int end, int used, uint8_t* range_bits) const {
    for (int bits = 0; bits <= kMaxClassBits; ++bits) {
      const int width = 1 << bits;
      for (int start = std::max(low_, end - width); start < end && (start == end - width || end == high_); ++start) {
        if (skips(start) || !fits(start, bits)) continue;
        if (cost_[start][used] + bits_between(start, end, bits) != cost_[end][used + 1]) continue;
        *range_bits = static_cast<uint8_t>(bits);
        return start;
      }
    }
    return low_;  // never: one of them gave the cost
  }

  const Histogram& histogram_;
  const bool gaps_;
  int low_ = 256, high_ = 0;
  int32_t before_[257];
  float cost_[257][kClasses + 4];  // whole numbers below 2^24, hence exact; floats have a vector minimum everywhere
};

void write_bits(const Table& table, uint8_t* to) {
  for (int i = 0; i < kClasses / 2; ++i) to[i] = static_cast<uint8_t>(table.bits[2 * i] | table.bits[2 * i + 1] << 4);
}

// Adds how often each class occurs.
void count_classes(const Histogram& codes, const Ranges& ranges, uint32_t (&counts)[kClasses]) {
  for (int i = 0; i < ranges.classes; ++i) {
    const int end = i + 1 < ranges.classes ? ranges.first[i + 1] : 256;
    counts[i] = std::accumulate(codes + ranges.first[i], codes + end, counts[i]);
  }
}

CutTable cut_table(const Ranges* const (&lanes)[4]) {
  CutTable cut = {lane_table({&lanes[0]->table, &lanes[1]->table, &lanes[2]->table, &lanes[3]->table}), {}, 0};
  for (int lane = 0; lane < 4; ++lane) {
    cut.classes = std::max(cut.classes, lanes[lane]->classes);
    for (int i = 1; i < kClasses; ++i) {
      const int below = i < lanes[lane]->classes ? lanes[lane]->first[i] - 129 : 127;
      std::memset(cut.below[i] + lane * kClasses, below, kClasses);
    }
  }
  return cut;
}

// The bytes of a sink, the last one filled up.
uint8_t* sink_end(const BitSink& sink) { return sink.to + (sink.filled + 7) / 8; }

uint8_t fold(uint8_t biased) { return static_cast<uint8_t>(biased >= 128 ? 2 * (biased - 128) : 255 - 2 * biased); }

void fold(const Histogram& plain, Histogram& folded) {
  for (int value = 0; value < 256; ++value) folded[fold(static_cast<uint8_t>(value))] = plain[value];
}

// Level 1 of a block.
struct Coding {
  bool folded;
  int tables_log2;
  Ranges tables[kColumnGroups];
};

// Folding orders codes by magnitude, which suits distributions around zero; others keep their order.
bool wants_fold(const Histogram& total) {
  const uint64_t below = std::accumulate(total, total + 128, uint64_t{0});
  const uint64_t above = std::accumulate(total + 129, total + 256, uint64_t{0});
  return 8 * std::min(below, above) > std::max(below, above);
}

int64_t fit_values(const Histogram& plain, bool folded, Ranges* ranges) {
  Histogram codes;
  if (folded) fold(plain, codes);
  const RangeCosts costs(folded ? codes : plain, true);
  *ranges = costs.best();
  return costs.extra_bits();
}

// One table for the block, or one for each 16 columns where their spreads differ enough.
Coding choose_coding(const Histogram (&groups)[kColumnGroups], const Histogram& total) {
  Coding coding = {wants_fold(total), 0, {}};
  const int64_t together = fit_values(total, coding.folded, &coding.tables[0]);
  int64_t entropy_apart = 0;
  for (const Histogram& group : groups) entropy_apart += entropy_bits(group, 256);
  const int64_t entropy = entropy_bits(total, 256);
  if ((entropy - entropy_apart) * kWorthwhile < entropy) return coding;
  Coding apart = {coding.folded, kGroupsLog2, {}};
  int64_t bits = 8 * kTableBytes * (kColumnGroups - 1);
  for (int i = 0; i < kColumnGroups; ++i) bits += fit_values(groups[i], apart.folded, &apart.tables[i]);
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
void count_column(const int8_t* from, int64_t stride, int64_t count, Histogram (&counts)[2]) {
  int64_t i = 0;
  for (; stride == 1 && i + 8 <= count; i += 8) {
    uint64_t eight;
    std::memcpy(&eight, from + i, sizeof(eight));
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j, eight >>= 8) ++counts[j % 2][eight & 255];
  }
  for (; i < count; ++i) ++counts[0][static_cast<uint8_t>(from[i * stride])];
}

// Counts value + 128 of each 16 columns apart, and of all of them.
void count_values(const Matrix& matrix, const BlockShape& shape, Histogram (&groups)[kColumnGroups], Histogram& total) {
  constexpr int64_t kColumns = kBlockN / kColumnGroups;
  std::memset(total, 0, sizeof(Histogram));
  for (int64_t group = 0; group < kColumnGroups; ++group) {
    const int64_t first = group * kColumns, end = std::min(first + kColumns, shape.n_count);
    Histogram counts[2] = {};
    for (int64_t n = first; n < end; ++n) {
      const int8_t* from = matrix.data + (shape.n + n) * matrix.n_stride + shape.k * matrix.k_stride;
      count_column(from, matrix.k_stride, shape.k_count, counts);
    }
    const bool exists = first < shape.panels() * kPanelColumns;
    const int64_t padded = exists ? kColumns * 4 * shape.steps() : 0, real = std::max<int64_t>(0, end - first) * shape.k_count;
    counts[0][0] += static_cast<uint32_t>(padded - real);
    for (int value = 0; value < 256; ++value) groups[group][value ^ 128] = counts[0][value] + counts[1][value];
    for (int value = 0; value < 256; ++value) total[value] += groups[group][value];
  }
}

}  // namespace

struct Encoder::Work {
  uint8_t values[kMaxBlockValues];
  uint8_t ranks[kMaxBlockValues / 2];
  uint8_t nibbles[kMaxBlockValues];          // of all levels, one after the other
  uint8_t extras[2 * kMaxBlockValues + 64];  // likewise
  // By level.
  uint8_t* nibbles_of[kMaxLevels + 2];
  uint8_t* extras_of[kMaxLevels + 2];
  uint8_t order[kMaxLevels + 1][kClasses];
  Table table[kMaxLevels + 1];
  uint32_t class_counts[kMaxLevels + 1][kClasses];

  void count_value_classes(const Coding& coding, const Histogram (&groups)[kColumnGroups], const Histogram& total);
  void encode_values(const BlockShape& shape, const Coding& coding);
  bool worthwhile(int level, int64_t nibble_count, int64_t bits_so_far) const;
  void encode_nibbles(int level, int64_t count);
  int64_t write_payload(const Coding& coding, int levels, int64_t values, uint8_t* payload) const;
  int64_t payload_bytes(const Coding& coding, int levels, int64_t values) const;
};

Encoder::Encoder() : work_(new (std::nothrow) Work) {}
Encoder::~Encoder() { delete work_; }

void Encoder::Work::count_value_classes(const Coding& coding, const Histogram (&groups)[kColumnGroups],
                                        const Histogram& total) {
  std::fill_n(class_counts[1], kClasses, 0u);
  for (int i = 0; i < 1 << coding.tables_log2; ++i) {
    const Histogram& plain = coding.tables_log2 == 0 ? total : groups[i];
    Histogram folded;
    if (coding.folded) fold(plain, folded);
    count_classes(coding.folded ? folded : plain, coding.tables[i], class_counts[1]);
  }
}

void Encoder::Work::encode_values(const BlockShape& shape, const Coding& coding) {
  BitSink sink = {extras_of[1], 0, 0};
  const bool one_table = coding.tables_log2 == 0;
  const int64_t parts = one_table ? 1 : shape.panels(), count = shape.values() / parts;
  for (int64_t part = 0; part < parts; ++part) {
    CutTable cuts[kPanelPieces];
    for (int64_t piece = 0; piece < (one_table ? 1 : kPanelPieces); ++piece) {
      const Ranges& ranges = coding.tables[one_table ? 0 : part * kPanelPieces + piece];
      cuts[piece] = cut_table({&ranges, &ranges, &ranges, &ranges});
    }
    kernel().shrink(values + part * count, count, cuts, one_table, coding.folded, nibbles_of[1] + part * count / 2, &sink);
  }
  nibbles_of[2] = nibbles_of[1] + shape.values() / 2;
  extras_of[2] = sink_end(sink);
}

// Whether an ideal code of the nibbles of the level below would save enough.
bool Encoder::Work::worthwhile(int level, int64_t nibble_count, int64_t bits_so_far) const {
  const int64_t saved = 4 * nibble_count - entropy_bits(class_counts[level - 1], kClasses) - 8 * kLevelBytes;
  return saved * kWorthwhile >= bits_so_far;
}

// Codes the nibbles of the level below, `count` bytes of two, once more.
void Encoder::Work::encode_nibbles(int level, int64_t count) {
  const uint8_t* lower = nibbles_of[level - 1];
  Histogram pairs = {};
  for (int64_t i = 0; i < count; ++i) ++pairs[lower[i]];
  choose_order(pairs, order[level]);
  uint8_t map[256], rank_of[256];
  rank_map(order[level], map);
  Histogram by_rank;
  for (int rank = 0; rank < 256; ++rank) {
    rank_of[map[rank]] = static_cast<uint8_t>(rank);
    by_rank[rank] = pairs[map[rank]];
  }
  Ranges ranges = RangeCosts(by_rank, false).best();
  set_rank_bases(&ranges.table);
  table[level] = ranges.table;
  std::fill_n(class_counts[level], kClasses, 0u);
  count_classes(by_rank, ranges, class_counts[level]);
  std::memcpy(ranks, lower, static_cast<size_t>(count));
  kernel().permute(rank_of, 256, count, ranks);
  const CutTable cut = cut_table({&ranges, &ranges, &ranges, &ranges});
  BitSink sink = {extras_of[level], 0, 0};
  kernel().shrink(ranks, count, &cut, true, false, nibbles_of[level], &sink);
  nibbles_of[level + 1] = nibbles_of[level] + count / 2;
  extras_of[level + 1] = sink_end(sink);
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
    std::memcpy(to, coding.tables[i].table.base, kClasses);
    write_bits(coding.tables[i].table, to + kClasses);
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
    const Coding coding = choose_coding(groups, total);
    work.count_value_classes(coding, groups, total);
    work.encode_values(shape, coding);
    int levels = 1;
    int64_t least = work.payload_bytes(coding, 1, count);
    for (int level = 2; levels_fit(count, level); ++level) {
      if (!work.worthwhile(level, count >> (level - 2), 8 * least)) break;
      work.encode_nibbles(level, count >> (level - 1));
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
