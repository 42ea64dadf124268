// SPDX-License-Identifier: Apache-2.0
#include "codec/fit.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "codec/decode.h"
#include "codec/kernel.h"

namespace anynpu::codec {
namespace {

// What tables for 16 columns each must save, in parts of the whole, and what levels 2 to 6 must. The second takes half as
// long to decode as the first, the third half as long as that.
constexpr int64_t kTablesSave = 64;
constexpr int64_t kLevelSaves[] = {48, 96, 128, 128, 128};
constexpr uint32_t kCommon = 32;     // a code between two that occur so often may hardly be missing by chance
constexpr int kMany = 4 * kClasses;  // codes
// What 16 classes of 16 codes may lose to an ideal code of the values: their extra bits are nibbles, which take a fifth as
// long to decode.
constexpr int64_t kNibblesLose = 36;
// A level is sparse that has less than a quarter of an extra bit for each code. Codes that have some then take as long to
// decode as four bits more would, and to have fewer of them may cost this part of the whole.
constexpr int64_t kSparsePart = 4;
constexpr int kSparseBits = 4;
constexpr int64_t kSparseLoses = 64;
// Where one of more than 32 codes occurs more often than all others, 6 classes: extra bits cost no time in a level that
// is not sparse, and pairs of few classes decode in half of it.
constexpr int kFewCodes = 2 * kClasses;
constexpr int kFewClasses = 6;

// log2(count) * 2^16.
int64_t log2_fixed(uint32_t count) {
  static const auto table = [] {
    struct {
      int32_t of[257];
    } logs;
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

// n log2 n * 2^10 of counts up to kMaxBlockValues.
const int32_t* n_log_n() {
  static const auto table = [] {
    struct {
      int32_t of[kMaxBlockValues + 1];
    } terms;
    terms.of[0] = 0;
    for (uint32_t i = 1; i <= kMaxBlockValues; ++i)
      terms.of[i] = static_cast<int32_t>(i * log2_fixed(i) >> (16 - kTermScale));
    return terms;
  }();
  return table.of;
}

// Bits of an ideal order-0 code; `size` counts that sum to at most kMaxBlockValues.
int64_t entropy_bits(const uint32_t* histogram, int size) {
  const int32_t* const terms = n_log_n();
  uint32_t total = 0;
  int64_t weighted = 0;
  for (int i = 0; i < size; ++i) {
    total += histogram[i];
    weighted += terms[histogram[i]];
  }
  return (terms[total] - weighted) >> kTermScale;
}

// What ranges are for: a level whose classes stay as they are, or go on to a next level (as they come, with few extra
// bits, or in few classes), or ranks.
enum class Purpose { last, coded, sparse, few, ranks };

int64_t codes_of(const Counts& counts) { return 256 - std::count(counts.of, counts.of + 256, 0u); }

// Finds the ranges that cover all codes at the least cost.
class RangeFitter {
 public:
  // The cost is that of the extra bits, and where classes go on half of what ideally codes them: then the next level
  // does better, though not ideally. Few classes count in full, or there would always be as many as may be. Ranges of
  // ranks follow each other from 0; others pass over codes that cannot occur, unless there are many folded ones, or
  // ranks: then ranges begin at multiples of about a 32nd and pass over nothing.
  RangeFitter(const Counts& counts, Purpose purpose, bool folded)
      : histogram_(counts.of),
        consecutive_(purpose == Purpose::ranks),
        smooth_(consecutive_ ? counts.end > kMany : folded && codes_of(counts) > kMany),
        gaps_(counts.complete && !smooth_),
        anywhere_(purpose == Purpose::few || (purpose == Purpose::sparse && folded) ? 0 : -1),
        most_(purpose == Purpose::few ? kFewClasses : kClasses),
        coded_shift_(kTermScale - kUnitLog2 + shift_of(purpose)),
        low_(counts.first),
        high_(counts.end) {
    while (gaps_ && low_ < high_ && histogram_[low_] == 0) ++low_;
    while (gaps_ && low_ < high_ && histogram_[high_ - 1] == 0) --high_;
    for (int bits = 0; bits <= kMaxClassBits; ++bits) {
      bit_costs_[bits] = (bits + (purpose == Purpose::sparse && bits != 0 ? kSparseBits : 0)) << kUnitLog2;
    }
    before_[0] = 0;
    for (int code = 0; code < 256; ++code) before_[code + 1] = before_[code] + static_cast<int32_t>(histogram_[code]);
    if (high_ <= low_) low_ = high_ = 0;  // nothing to cover: no range
    std::memset(costs_ + low_, kNever & 0xff, static_cast<size_t>(high_ + 1 - low_) * sizeof(RangeCosts));
    for (int start = low_; start < high_; start += step(start)) extend(start);
  }

  Ranges best() const {
    Ranges ranges = {};
    std::iota(ranges.class_of, ranges.class_of + kClasses, uint8_t{0});
    const int32_t* const total = costs_[high_].of;
    int used = high_ == 0 ? 0 : static_cast<int>(std::min_element(total, total + most_) - total) + 1;
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
      ranges.table.base[used] = static_cast<uint8_t>(std::min(base_of(end, bits), 256 - (1 << bits)));
    }
    return ranges;
  }

 private:
  static constexpr int32_t kNever = 0x20202020;  // of equal bytes
  static constexpr int kUnitLog2 = 4;            // costs are in 16ths of a bit

  // From a start of ranges to the next one.
  int step(int start) const {
    return smooth_ && start >= 32 ? 1 << (27 - __builtin_clz(static_cast<unsigned>(start))) : 1;
  }
  bool skips(int code) const { return gaps_ && code >= low_ && histogram_[code] == 0; }
  // Ranks are looked up in 64, 128 or 256 entries.
  bool fits(int start, int bits) const {
    return !consecutive_ || start + (1 << bits) <= (high_ > 128 ? 256 : high_ > 64 ? 128 : 64);
  }
  // Aligned ranges lie between multiples of their size: extra bits change nothing else of their base, and codes that
  // occur more often than their neighbours stay alone.
  int base_of(int start, int bits) const { return start & (anywhere_ | -(1 << bits)); }
  int end_of(int start, int bits) const { return std::min(base_of(start, bits) + (1 << bits), high_); }
  // By how much what codes the classes ideally is shifted: not at all, by one, or away.
  static int shift_of(Purpose purpose) {
    switch (purpose) {
      case Purpose::few: return 0;
      case Purpose::coded:
      case Purpose::sparse: return 1;
      case Purpose::last:
      case Purpose::ranks: return 31 - kTermScale + kUnitLog2;
    }
    return 0;
  }
  // Of covering the codes below `end`.
  int32_t cost(int end, int used) const { return used == 0 ? none(end) : costs_[end].of[used - 1]; }
  int32_t none(int end) const { return end == low_ ? 0 : kNever; }
  // Of a range, without what all the ways have in common.
  int32_t cost_of(int start, int end, int bits) const {
    const int32_t codes = before_[end] - before_[start];
    return bit_costs_[bits] * codes - (terms_[codes] >> coded_shift_);
  }

  void extend(int start) {
    const RangeCosts& from = costs_[start];
    if (skips(start)) {
      int32_t* const to = costs_[start + 1].of;
      for (int i = 0; i < kClasses; ++i) to[i] = std::min(to[i], from.of[i]);
      return;
    }
    int32_t ends[kMaxClassBits + 1], extra[kMaxClassBits + 1], count = 0;
    for (int bits = __builtin_ctz(static_cast<unsigned>(step(start))); bits <= kMaxClassBits && fits(start, bits);
         ++bits) {
      ends[count] = end_of(start, bits);
      extra[count] = cost_of(start, ends[count], bits);
      if (ends[count++] == high_) break;
    }
    kernel_.add_range(from, none(start), ends, extra, count, costs_);
  }

  // The start of a range that ends here and leaves `used` ranges before it.
  int last_range(int end, int used, int* range_bits) const {
    for (int bits = 0; bits <= kMaxClassBits; ++bits) {
      for (int start = std::max(low_, end - (1 << bits)); start < end; ++start) {
        if (skips(start) || !fits(start, bits) || end_of(start, bits) != end) continue;
        if (cost(start, used) + cost_of(start, end, bits) != cost(end, used + 1)) continue;
        *range_bits = bits;
        return start;
      }
    }
    return low_;  // never: one of them gave the cost
  }

  const Histogram& histogram_;
  const Kernel& kernel_ = kernel();
  const int32_t* const terms_ = n_log_n();
  const bool consecutive_;
  const bool smooth_;
  const bool gaps_;
  const int anywhere_;  // all bits of where ranges that are not aligned may begin, or none
  const int most_;      // classes
  const int coded_shift_;
  int32_t bit_costs_[kMaxClassBits + 1];  // of a code with so many extra bits
  int low_, high_;
  int32_t before_[257];
  RangeCosts costs_[257];
};

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
  for (int i = 0; i < kClasses; ++i) {
    int before = 0;
    for (int j = 0; j < kClasses; ++j) before += counts[j] + (j < i) > counts[i];
    rank[i] = static_cast<uint8_t>(before);
  }
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

// Cuts the plane of both nibbles into 16 boxes, each time the fullest box into halves as unlike as possible: a cut
// saves a bit of every byte in the box.
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
    boxes.bits = 8 * kBoxesBytes;
    for (int i = 0; i < kClasses; ++i) {
      const Box& box = boxes_[i];
      const uint8_t number = rank[i];
      boxes.counts[number] = box.count;
      boxes.bits += int64_t{box.count} * (4 + box.bits());
      boxes.table.base[number] = static_cast<uint8_t>(box.low | box.high << 4);
      boxes.table.mask[number] = static_cast<uint8_t>(mask_of_bits(box.low_bits) | mask_of_bits(box.high_bits) << 4);
    }
    return boxes;
  }

 private:
  Box counted(Box box) const {
    const int low_end = box.low + (1 << box.low_bits), high_end = box.high + (1 << box.high_bits);
    box.count =
        below_[high_end][low_end] - below_[box.high][low_end] - below_[high_end][box.low] + below_[box.high][box.low];
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

uint8_t fold(uint8_t biased) { return static_cast<uint8_t>(biased >= 128 ? 2 * (biased - 128) : 255 - 2 * biased); }

Counts fold(const Counts& plain) {
  Counts folded;
  for (int i = 0; i < 128; ++i) {
    folded.of[2 * i] = plain.of[128 + i];
    folded.of[2 * i + 1] = plain.of[127 - i];
  }
  const auto end_of = [](int value) { return fold(static_cast<uint8_t>(value)) + 1; };
  folded.first = 0;
  folded.end = plain.first < plain.end ? std::max(end_of(plain.first), end_of(plain.end - 1)) : 0;
  folded.complete = plain.complete;
  return folded;
}

// Folding orders codes by magnitude, which suits distributions around zero; others keep their order.
bool wants_fold(const Histogram& total) {
  const uint64_t below = std::accumulate(total, total + 128, uint64_t{0});
  const uint64_t above = std::accumulate(total + 129, total + 256, uint64_t{0});
  return 8 * std::min(below, above) > std::max(below, above);
}

// Ranges, how often their classes occur, and their extra bits.
struct Fitted {
  Ranges ranges;
  ClassCounts counts;
  int64_t extra;
  int64_t codes() const { return std::accumulate(counts, counts + kClasses, int64_t{0}); }
  bool sparse() const { return kSparsePart * extra < codes(); }
  int64_t ideal_bits() const { return extra + entropy_bits(counts, kClasses); }
};

// Whether one code occurs more often than all others together.
bool one_dominates(const Histogram& codes) {
  return 2 * *std::max_element(codes, codes + 256) > std::accumulate(codes, codes + 256, 0u);
}

Fitted fit_to(const Counts& codes, Purpose purpose, bool folded) {
  Fitted fitted = {RangeFitter(codes, purpose, folded).best(), {}, 0};
  number_classes(codes.of, &fitted.ranges);
  count_classes(codes.of, fitted.ranges, fitted.counts);
  fitted.extra = extra_bits(fitted.ranges.table, fitted.counts);
  return fitted;
}

// Fits ranges to the codes of values and adds their classes to `counts`. Returns the bits of a first level, which can be
// sparse if this is its only table.
int64_t fit_values(const Counts& codes, bool folded, bool coded, bool only, Ranges* ranges, ClassCounts& counts) {
  const bool few = coded && codes.end - codes.first > kFewCodes && one_dominates(codes.of);
  Fitted best = fit_to(codes, few ? Purpose::few : coded ? Purpose::coded : Purpose::last, folded);
  if (coded && only && !few && best.sparse()) {
    const Fitted sparse = fit_to(codes, Purpose::sparse, folded);
    if ((sparse.ideal_bits() - best.ideal_bits()) * kSparseLoses <= best.ideal_bits()) best = sparse;
  }
  *ranges = best.ranges;
  for (int i = 0; i < kClasses; ++i) counts[i] += best.counts[i];
  return best.extra + 4 * best.codes();
}

// Of each value in two levels: four extra bits, and half a class nibble of the second.
constexpr int64_t kLeastNibblesBits = 6;

// Bits of two levels: nibbles in each of these classes, and boxes of two of them.
int64_t nibbles_bits(const ClassCounts& classes) {
  const int64_t total = std::accumulate(classes, classes + kClasses, int64_t{0});
  Histogram pairs;  // 2 * total times as many as there are
  for (int pair = 0; pair < 256; ++pair) pairs[pair] = classes[pair & 15] * classes[pair >> 4];
  const Boxes boxes = cut_boxes(pairs);
  return kLeastNibblesBits * total + 8 * kBoxesBytes + extra_bits(boxes.table, boxes.counts) / (2 * total);
}

// 16 classes of 16 codes.
Ranges nibble_ranges(const Histogram& codes) {
  Ranges ranges = {};
  ranges.count = kClasses;
  std::iota(ranges.class_of, ranges.class_of + kClasses, uint8_t{0});
  for (int i = 0; i < kClasses; ++i) {
    ranges.first[i] = ranges.table.base[i] = static_cast<uint8_t>(kClasses * i);
    ranges.table.mask[i] = mask_of_bits(4);
  }
  number_classes(codes, &ranges);
  return ranges;
}

// What ideal codes of these classes would save, one for each group instead of one for all of them.
int64_t saved_by_groups(const Counts (&groups)[kColumnGroups], const Ranges& ranges, const ClassCounts& counts) {
  int64_t saved = entropy_bits(counts, kClasses);
  for (const Counts& group : groups) {
    ClassCounts own = {};
    count_classes(group.of, ranges, own);
    saved -= entropy_bits(own, kClasses);
  }
  return saved;
}

// Takes 16 classes of 16 codes, if they lose little and groups differ little.
bool take_nibbles(const Counts (&groups)[kColumnGroups], const Counts& total, Coding* coding, ClassCounts& counts) {
  const int64_t values = std::accumulate(total.of, total.of + 256, int64_t{0}), ideal = entropy_bits(total.of, 256);
  const auto lose_much = [&](int64_t bits) { return bits * kNibblesLose > ideal * (kNibblesLose + 1); };
  if (!levels_fit(values, 2) || lose_much(kLeastNibblesBits * values)) return false;
  const Ranges ranges = nibble_ranges(total.of);
  ClassCounts classes = {};
  count_classes(total.of, ranges, classes);
  if (lose_much(nibbles_bits(classes)) || saved_by_groups(groups, ranges, classes) * kTablesSave >= ideal) return false;
  coding->tables[0] = ranges;
  std::copy_n(classes, kClasses, counts);
  return true;
}

// Whether an ideal code of `nibbles` class nibbles in `ideal` bits would save enough of the bits that there are.
bool saves_enough(int level, int64_t nibbles, int64_t ideal, int64_t bits) {
  const int64_t saved = 4 * nibbles - ideal - 8 * kBoxesBytes;
  return saved > 0 && saved * kLevelSaves[level - 2] >= bits;
}

// Whether classes of these codes are worth coding whatever they are: their entropy is at most that of the codes.
bool surely_worth_coding(const Histogram& codes) {
  const int64_t total = std::accumulate(codes, codes + 256, int64_t{0});
  return saves_enough(2, total, entropy_bits(codes, 256), (4 + kMaxClassBits) * total);
}

// Of codes, which are values or folded ones.
Coding choose_tables(const Counts (&groups)[kColumnGroups], const Counts& total, bool folded, ClassCounts& counts) {
  Coding coding = {folded, 0, {}};
  std::fill_n(counts, kClasses, 0u);
  bool coded = surely_worth_coding(total.of);
  int64_t together = fit_values(total, folded, coded, true, &coding.tables[0], counts);
  if (!coded && worth_coding(2, counts, together)) {
    coded = true;
    std::fill_n(counts, kClasses, 0u);
    together = fit_values(total, folded, true, true, &coding.tables[0], counts);
  }
  if (saved_by_groups(groups, coding.tables[0], counts) * kTablesSave < together) return coding;
  Coding apart = {folded, kGroupsLog2, {}};
  ClassCounts counts_apart = {};
  int64_t bits = 8 * kTableBytes * (kColumnGroups - 1);
  for (int i = 0; i < kColumnGroups; ++i)
    bits += fit_values(groups[i], folded, coded, false, &apart.tables[i], counts_apart);
  if (bits >= together) return coding;
  std::copy_n(counts_apart, kClasses, counts);
  return apart;
}

}  // namespace

bool worth_coding(int level, const ClassCounts& counts, int64_t bits) {
  const int64_t total = std::accumulate(counts, counts + kClasses, int64_t{0});
  return saves_enough(level, total, entropy_bits(counts, kClasses), bits);
}

bool has_gaps(const Counts& sample) {
  uint32_t before = 0;
  bool missing = false;
  for (int code = sample.first; code < sample.end; ++code) {
    const uint32_t count = sample.of[code];
    if (missing && std::min(before, count) >= kCommon) return true;
    missing = count == 0;
    if (count != 0) before = count;
  }
  return false;
}

Coding choose_coding(const Counts (&groups)[kColumnGroups], const Counts& total, ClassCounts& counts) {
  Coding nibbles = {false, 0, {}};
  if (take_nibbles(groups, total, &nibbles, counts)) return nibbles;
  if (!wants_fold(total.of)) return choose_tables(groups, total, false, counts);
  Counts folded[kColumnGroups];
  for (int i = 0; i < kColumnGroups; ++i) folded[i] = fold(groups[i]);
  return choose_tables(folded, fold(total), true, counts);
}

void choose_order(const Histogram& pairs, uint8_t (&order)[kClasses]) {
  uint32_t low[kClasses] = {}, classes[kClasses];
  for (int high = 0; high < kClasses; ++high) {
    const uint32_t* const row = pairs + kClasses * high;
    for (int i = 0; i < kClasses; ++i) low[i] += row[i];
    classes[high] = std::accumulate(row, row + kClasses, 0u);
  }
  for (int i = 0; i < kClasses; ++i) classes[i] += low[i];
  const int64_t total = log2_fixed(std::accumulate(classes, classes + kClasses, 0u));
  for (int i = 0; i < kClasses; ++i) {
    const int64_t weight = classes[i] == 0 ? kMaxOrderWeight : (total - log2_fixed(classes[i]) + (1 << 12)) >> 13;
    order[i] = static_cast<uint8_t>(std::min<int64_t>(weight, kMaxOrderWeight));
  }
}

Ranges fit_ranks(const Counts& by_rank, ClassCounts& counts) {
  Ranges ranges = RangeFitter(by_rank, Purpose::ranks, false).best();
  set_rank_bases(&ranges.table);
  std::fill_n(counts, kClasses, 0u);
  count_classes(by_rank.of, ranges, counts);
  return ranges;
}

Boxes cut_boxes(const Histogram& pairs) { return BoxCutter(pairs).boxes(); }

void map_boxes(const Table& table, uint8_t (&class_of)[256]) {
  for (int i = 0; i < kClasses; ++i) {
    const int low_size = (table.mask[i] & 15) + 1, high_size = (table.mask[i] >> 4) + 1;
    for (int row = 0; row < high_size; ++row) {
      std::memset(class_of + table.base[i] + 16 * row, i, static_cast<size_t>(low_size));
    }
  }
}

int64_t ideal_bits(const Histogram& pairs, int part_log2) {
  const int64_t used = 256 - std::count(pairs, pairs + 256, 0u);
  return entropy_bits(pairs, 256) + ((used - 1) << part_log2) * 46 / 64;
}

}  // namespace anynpu::codec
