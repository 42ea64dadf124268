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
// What a further coding must save, in parts of the whole, to be worth its decoding time; half of it above the second level.
constexpr int64_t kWorthwhile = 64;
// All levels of boxes may lose this part of the whole to an ideal code.
constexpr int64_t kBoxesLoss = 32;
constexpr uint32_t kSampled = 4;  // one of so many class nibbles is counted to choose boxes
constexpr int64_t kChunk = 4096;  // codes that are classified before they are packed, so that both stay in the L1 cache

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

constexpr int kTermScale = 10;

// n log2 n * 2^10 of a count up to kMaxBlockValues.
int32_t n_log_n(uint32_t n) {
  static const auto table = [] {
    struct { int32_t of[kMaxBlockValues + 1]; } terms;
    terms.of[0] = 0;
    for (uint32_t i = 1; i <= kMaxBlockValues; ++i) terms.of[i] = static_cast<int32_t>(i * log2_fixed(i) >> (16 - kTermScale));
    return terms;
  }();
  return table.of[n];
}

// Bits of an ideal order-0 code; `size` counts that sum to at most kMaxBlockValues.
int64_t entropy_bits(const uint32_t* histogram, int size) {
  uint32_t total = 0;
  int64_t weighted = 0;
  for (int i = 0; i < size; ++i) {
    total += histogram[i];
    weighted += n_log_n(histogram[i]);
  }
  return (n_log_n(total) - weighted) >> kTermScale;
}

// The same of an estimate of the source's entropy (Miller and Madow): a sample of it looks more orderly than it is, by half
// a nat for each value but one.
int64_t source_bits(const Histogram& histogram) {
  const int64_t used = 256 - std::count(histogram, histogram + 256, 0u);
  return entropy_bits(histogram, 256) + (used - 1) * 46 / 64;
}

// Ranges of codes, ascending: range r holds the codes from first[r] to below the first of the range after it.
struct Ranges {
  Table table;  // by class
  uint8_t first[kClasses];
  uint8_t class_of[kClasses];
  int count;
};

// Finds the ranges that cover all codes at the least cost.
class RangeFitter {
 public:
  // With `gaps`, codes that do not occur need no range; without, the ranges follow each other from 0. The cost is that of the
  // extra bits, and with `coded` half of what ideally codes the classes: then the next level does better, though not ideally.
  // Many folded codes are taken to thin out smoothly: then ranges begin at multiples of about a 16th, gaps or not.
  RangeFitter(const Histogram& histogram, bool gaps, bool coded, bool folded) : histogram_(histogram), gaps_(gaps), coded_(coded) {
    before_[0] = 0;
    int used = 0;
    for (int code = 0; code < 256; ++code) {
      before_[code + 1] = before_[code] + static_cast<int32_t>(histogram[code]);
      if (histogram[code] != 0) low_ = std::min(low_, code), high_ = code + 1, ++used;
    }
    smooth_ = folded && used > 4 * kClasses;
    if (!gaps || high_ == 0) low_ = 0;  // nothing to cover: no range
    for (int end = low_; end <= high_; ++end) std::fill_n(costs_[end].of, kClasses, kNever);
    for (int start = low_; start < high_; ++start) extend(start);
  }

  Ranges best() const {
    Ranges ranges = {};
    std::iota(ranges.class_of, ranges.class_of + kClasses, uint8_t{0});
    const int32_t* const total = costs_[high_].of;
    int used = high_ == 0 ? 0 : static_cast<int>(std::min_element(total, total + kClasses) - total) + 1;
    ranges.count = used;
    for (int end = high_; used > 0;) {
      if (skips(end - 1) && cost(end - 1, used) == cost(end, used)) {
        --end;
        continue;
      }
      --used;
      int bits = 0;
      end = last_range(end, used, &bits);
      ranges.first[used] = static_cast<uint8_t>(end);
      ranges.table.mask[used] = mask_of_bits(bits);
      ranges.table.base[used] = static_cast<uint8_t>(std::min(end, 256 - (1 << bits)));
    }
    return ranges;
  }

 private:
  static constexpr int32_t kNever = 1 << 29;
  static constexpr int kUnitLog2 = 4;  // costs are in 16ths of a bit

  bool skips(int code) const { return gaps_ && !smooth_ && code >= low_ && histogram_[code] == 0; }
  bool fits(int start, int bits) const { return gaps_ || start + (1 << bits) <= 256; }
  // Of covering the codes below `end`.
  int32_t cost(int end, int used) const { return used == 0 ? none(end) : costs_[end].of[used - 1]; }
  int32_t none(int end) const { return end == low_ ? 0 : kNever; }
  // Of a range, without what all the ways have in common.
  int32_t cost_of(int start, int end, int bits) const {
    const int32_t codes = before_[end] - before_[start];
    const int32_t coded = coded_ ? n_log_n(static_cast<uint32_t>(codes)) >> (kTermScale - kUnitLog2 + 1) : 0;
    return (bits * codes << kUnitLog2) - coded;
  }

  void extend(int start) {
    const RangeCosts& from = costs_[start];
    const int step = smooth_ && start >= 16 ? 1 << (28 - __builtin_clz(static_cast<unsigned>(start))) : 1;
    if (start % step != 0) return;
    if (skips(start)) {
      int32_t* const to = costs_[start + 1].of;
      for (int i = 0; i < kClasses; ++i) to[i] = std::min(to[i], from.of[i]);
      return;
    }
    int32_t ends[kMaxClassBits + 1], extra[kMaxClassBits + 1], count = 0;
    for (int bits = __builtin_ctz(static_cast<unsigned>(step)); bits <= kMaxClassBits && fits(start, bits); ++bits) {
      ends[count] = std::min(start + (1 << bits), high_);
      extra[count] = cost_of(start, ends[count], bits);
      if (ends[count++] == high_) break;
    }
    kernel().add_range(from, none(start), ends, extra, count, costs_);
  }

  // The start of a range that ends here and leaves `used` ranges before it.
  int last_range(int end, int used, int* range_bits) const {
    for (int bits = 0; bits <= kMaxClassBits; ++bits) {
      const int width = 1 << bits;
      for (int start = std::max(low_, end - width); start < end && (start == end - width || end == high_); ++start) {
        if (skips(start) || !fits(start, bits)) continue;
        if (cost(start, used) + cost_of(start, end, bits) != cost(end, used + 1)) continue;
        *range_bits = bits;
        return start;
      }
    }
    return low_;  // never: one of them gave the cost
  }

  const Histogram& histogram_;
  const bool gaps_;
  const bool coded_;
  bool smooth_;
  int low_ = 256, high_ = 0;
  int32_t before_[257];
  RangeCosts costs_[257];
};

using ClassCounts = uint32_t[kClasses];

void write_bits(const Table& table, uint8_t* to) {
  const auto bits = [&](int i) { return __builtin_popcount(table.mask[i]); };
  for (int i = 0; i < kClasses / 2; ++i) to[i] = static_cast<uint8_t>(bits(2 * i) | bits(2 * i + 1) << 4);
}

// Adds how often each class occurs.
void count_classes(const Histogram& codes, const Ranges& ranges, ClassCounts& counts) {
  for (int i = 0; i < ranges.count; ++i) {
    const int end = i + 1 < ranges.count ? ranges.first[i + 1] : 256;
    uint32_t& count = counts[ranges.class_of[i]];
    count = std::accumulate(codes + ranges.first[i], codes + end, count);
  }
}

int64_t extra_bits(const Table& table, const ClassCounts& counts) {
  int64_t bits = 0;
  for (int i = 0; i < kClasses; ++i) bits += int64_t{counts[i]} * __builtin_popcount(table.mask[i]);
  return bits;
}

// Where each of 16 counts comes when they fall.
void rank_of_counts(const ClassCounts& counts, uint8_t (&rank)[kClasses]) {
  uint8_t order[kClasses];
  std::iota(order, order + kClasses, uint8_t{0});
  std::stable_sort(order, order + kClasses, [&](uint8_t a, uint8_t b) { return counts[a] > counts[b]; });
  for (int i = 0; i < kClasses; ++i) rank[order[i]] = static_cast<uint8_t>(i);
}

// Numbers the classes by how often they occur, so that the boxes of the next level hold what is alike.
void number_classes(const Histogram& codes, Ranges* ranges) {
  ClassCounts counts = {};
  count_classes(codes, *ranges, counts);
  rank_of_counts(counts, ranges->class_of);
  const Table by_range = ranges->table;
  for (int i = 0; i < kClasses; ++i) {
    ranges->table.base[ranges->class_of[i]] = by_range.base[i];
    ranges->table.mask[ranges->class_of[i]] = by_range.mask[i];
  }
}

// Both class nibbles of a byte from a dyadic range each.
struct Box {
  int low, low_bits;  // the low nibble is from `low` on, below low + 2^low_bits
  int high, high_bits;
  uint32_t count;
  int bits() const { return low_bits + high_bits; }
};

// Classes of class nibbles, two to a byte.
struct Boxes {
  Table table;
  uint8_t class_of[256];
  ClassCounts counts;
};

// Cuts the plane of both nibbles into 16 boxes, each time the fullest box into halves as unlike as possible: a cut saves a bit
// of every byte in the box.
class BoxCutter {
 public:
  explicit BoxCutter(const Histogram& bytes) {
    for (int high = 0; high < kClasses; ++high) {
      uint32_t row = 0;
      for (int low = 0; low < kClasses; ++low) {
        row += bytes[16 * high + low];
        below_[high + 1][low + 1] = below_[high][low + 1] + row;
      }
    }
    boxes_[0] = {0, 4, 0, 4, below_[kClasses][kClasses]};
    for (count_ = 1; count_ < kClasses; ++count_) cut_one();
  }

  Boxes boxes() const {
    ClassCounts counts;
    for (int i = 0; i < kClasses; ++i) counts[i] = boxes_[i].count;
    uint8_t rank[kClasses];
    rank_of_counts(counts, rank);
    Boxes boxes;
    for (int i = 0; i < kClasses; ++i) {
      const Box& box = boxes_[i];
      const uint8_t number = rank[i];
      boxes.counts[number] = box.count;
      boxes.table.base[number] = static_cast<uint8_t>(box.low | box.high << 4);
      boxes.table.mask[number] = static_cast<uint8_t>(mask_of_bits(box.low_bits) | mask_of_bits(box.high_bits) << 4);
      for (int high = box.high; high < box.high + (1 << box.high_bits); ++high) {
        std::memset(boxes.class_of + 16 * high + box.low, number, size_t{1} << box.low_bits);
      }
    }
    return boxes;
  }

 private:
  Box counted(Box box) const {
    const int low_end = box.low + (1 << box.low_bits), high_end = box.high + (1 << box.high_bits);
    box.count = below_[high_end][low_end] - below_[box.high][low_end] - below_[high_end][box.low] + below_[box.high][box.low];
    return box;
  }

  void cut_one() {
    const auto fuller = [](const Box& a, const Box& b) {
      return a.bits() == 0 || b.bits() == 0 ? a.bits() < b.bits() : a.count < b.count;
    };
    Box& box = *std::max_element(boxes_, boxes_ + count_, fuller);
    const Box whole = box;
    Box left = whole, lower = whole;
    if (whole.low_bits != 0) --left.low_bits, left = counted(left);
    if (whole.high_bits != 0) --lower.high_bits, lower = counted(lower);
    const auto larger_part = [&](const Box& half) { return std::max(half.count, whole.count - half.count); };
    const bool by_low = whole.high_bits == 0 || (whole.low_bits != 0 && larger_part(left) >= larger_part(lower));
    box = by_low ? left : lower;
    Box& other = boxes_[count_];
    other = box;
    (by_low ? other.low : other.high) += by_low ? 1 << box.low_bits : 1 << box.high_bits;
    other.count = whole.count - box.count;
  }

  uint32_t below_[kClasses + 1][kClasses + 1] = {};  // of nibbles below both
  Box boxes_[kClasses];
  int count_;
};

CutTable cut_table(const Ranges* const (&lanes)[4]) {
  CutTable cut = {};
  for (int lane = 0; lane < 4; ++lane) {
    cut.ranges = std::max(cut.ranges, lanes[lane]->count);
    std::memcpy(cut.class_of + lane * kClasses, lanes[lane]->class_of, kClasses);
    for (int i = 1; i < kClasses; ++i) {
      const int below = i < lanes[lane]->count ? lanes[lane]->first[i] - 129 : 127;
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

// Whether an ideal code of the nibbles below `level` would save enough of the bits that there are.
bool worth_coding(int level, const ClassCounts& counts, int64_t bits) {
  const int64_t total = std::accumulate(counts, counts + kClasses, int64_t{0});
  const int64_t saved = 4 * total - entropy_bits(counts, kClasses) - 8 * kBoxesBytes;
  return saved > 0 && saved * (level == 2 ? kWorthwhile : 2 * kWorthwhile) >= bits;
}

// Fits ranges to plain or folded values and adds their classes to `counts`. Returns the bits of a first level.
int64_t fit_values(const Histogram& values, bool folded, bool coded, Ranges* ranges, ClassCounts& counts) {
  Histogram codes;
  if (folded) fold(values, codes);
  const Histogram& histogram = folded ? codes : values;
  *ranges = RangeFitter(histogram, true, coded, folded).best();
  number_classes(histogram, ranges);
  ClassCounts own = {};
  count_classes(histogram, *ranges, own);
  for (int i = 0; i < kClasses; ++i) counts[i] += own[i];
  return extra_bits(ranges->table, own) + 4 * std::accumulate(own, own + kClasses, int64_t{0});
}

// One table for the block, or one for each 16 columns where their spreads differ enough. Counts its classes.
Coding choose_coding(const Histogram (&groups)[kColumnGroups], const Histogram& total, ClassCounts& counts) {
  Coding coding = {wants_fold(total), 0, {}};
  std::fill_n(counts, kClasses, 0u);
  int64_t together = fit_values(total, coding.folded, false, &coding.tables[0], counts);
  const bool coded = worth_coding(2, counts, together);
  if (coded) {
    std::fill_n(counts, kClasses, 0u);
    together = fit_values(total, coding.folded, true, &coding.tables[0], counts);
  }
  int64_t entropy_apart = 0;
  for (const Histogram& group : groups) entropy_apart += source_bits(group);
  const int64_t entropy = source_bits(total);
  if ((entropy - entropy_apart) * kWorthwhile < entropy) return coding;
  Coding apart = {coding.folded, kGroupsLog2, {}};
  ClassCounts counts_apart = {};
  int64_t bits = 8 * kTableBytes * (kColumnGroups - 1);
  for (int i = 0; i < kColumnGroups; ++i) bits += fit_values(groups[i], apart.folded, coded, &apart.tables[i], counts_apart);
  if (bits >= together) return coding;
  std::copy_n(counts_apart, kClasses, counts);
  return apart;
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
  Ranges ranges = RangeFitter(by_rank, false, false, false).best();
  set_rank_bases(&ranges.table);
  table[level] = ranges.table;
  std::fill_n(class_counts[level], kClasses, 0u);
  count_classes(by_rank, ranges, class_counts[level]);
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
  const Boxes chosen = BoxCutter(pairs).boxes();
  const int64_t loss = extra_bits(chosen.table, chosen.counts) + 4 * count - entropy_bits(pairs, 256);
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
