// SPDX-License-Identifier: Apache-2.0
// One shuffle gives each group of eight codes the 64 bits that hold its extra bits, one multishift each code its own.
#include "codec/avx512.inc"

namespace anynpu::codec {
namespace {

// Half of a code, and all of its bits but that of 128 turned when it is odd, that one when it is even.
inline __m512i unfold(__m512i code) {
  return _mm512_gf2p8affine_epi64_epi8(code, _mm512_set1_epi64(0x0305091121418101), 0x80);
}

// The tables of a piece. Of boxes also how much further up than its low nibble the high one of a code goes.
struct Lanes {
  __m512i base, mask, lift;
};

inline Lanes load_lanes(const LaneTable& table) {
  const __m512i mask = _mm512_load_si512(table.mask);
  const __m512i low_bits = _mm512_popcnt_epi8(_mm512_and_si512(mask, _mm512_set1_epi8(15)));
  return {_mm512_load_si512(table.base), mask, _mm512_sub_epi8(low_bits, _mm512_set1_epi8(4))};
}

// Entries of the classes. Where all lanes are the same table, bits above a class do no harm.
template <bool kOneTable>
inline __m512i entries(__m512i table, __m512i classes) {
  return kOneTable ? _mm512_permutexvar_epi8(classes, table) : _mm512_shuffle_epi8(table, classes);
}

// What is known of 64 codes before their extra bits are.
struct Part {
  __m512i classes, masks;
  __m512i begins;  // of the extra bits of a code in its group's
};

// Eight groups of codes: the extra bits before each; in place of the first, which has none, those of all of them.
// `ends` are those up to each code of a group.
inline __m512i bits_of_groups(__m512i ends) {
  const __m512i last_bytes = _mm512_set1_epi64(0x3f372f271f170f07);
  const __m512i before = _mm512_maskz_permutexvar_epi8(0x7f3f1f0f070301ff, last_bytes, ends);
  return _mm512_sad_epu8(before, _mm512_setzero_si512());
}

inline uint64_t all_bits(__m512i groups) {
  return static_cast<uint64_t>(_mm_cvtsi128_si64(_mm512_castsi512_si128(groups)));
}

// The sums of the bytes of a group up to each.
inline __m512i sums(__m512i bytes) { return _mm512_mullo_epi64(bytes, _mm512_set1_epi8(1)); }

// A piece: its groups are eight codes each.
struct Piece {
  Part part;
  __m512i groups;
};

template <bool kOneTable>
inline Piece look_up(const uint8_t* nibbles, const Lanes& lanes) {
  // Of each code its nibble and the one after.
  const __m512i words = _mm512_cvtepu32_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(nibbles)));
  const __m512i pairs = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(0x1c1814100c080400), words);
  const __m512i classes = kOneTable ? pairs : _mm512_and_si512(pairs, _mm512_set1_epi8(15));
  const __m512i masks = entries<kOneTable>(lanes.mask, classes), bits = _mm512_popcnt_epi8(masks);
  const __m512i ends = sums(bits);
  return {{classes, masks, _mm512_sub_epi8(ends, bits)}, bits_of_groups(ends)};
}

constexpr uint8_t kWindowBits = 57;  // that begin at any bit of a byte and lie in 64

// Two pieces, as the codes of the low nibbles and those of the high ones: less work for each code, if no group of 16 codes
// has more extra bits than fit a window.
struct Pieces {
  Part even, odd;
  __m512i ends;  // of the extra bits of both codes of a byte in their group's
  __m512i groups;
};

inline Pieces look_up_two(const uint8_t* nibbles, const Lanes& lanes) {
  const __m512i even = _mm512_loadu_si512(nibbles), odd = _mm512_srli_epi16(even, 4);
  const __m512i even_masks = entries<true>(lanes.mask, even), odd_masks = entries<true>(lanes.mask, odd);
  const __m512i odd_bits = _mm512_popcnt_epi8(odd_masks),
                bits = _mm512_add_epi8(_mm512_popcnt_epi8(even_masks), odd_bits);
  const __m512i ends = sums(bits);
  return {{even, even_masks, _mm512_sub_epi8(ends, bits)},
          {odd, odd_masks, _mm512_sub_epi8(ends, odd_bits)},
          ends,
          bits_of_groups(ends)};
}

// The extra bits of each group, the first one lowest: 57 or more of those at bit `position`.
inline __m512i windows(__m512i groups_bits, const uint8_t* data, uint64_t position) {
  static constexpr uint64_t kFirst[8] = {0, 1, 2, 3, 4, 5, 6, 7};  // memory fills a vector for less than a register
  const __m512i start = _mm512_set1_epi64(static_cast<int64_t>(kFirst[position % 8]));
  const __m512i groups = _mm512_mask_add_epi64(start, 0xfe, start, groups_bits);
  const __m512i byte = _mm512_multishift_epi64_epi8(_mm512_set1_epi8(3), groups);  // of 9 bits all but the lowest 3
  const __m512i places = _mm512_add_epi8(byte, _mm512_set1_epi64(0x0706050403020100));
  const __m512i bytes = _mm512_permutexvar_epi8(places, _mm512_loadu_si512(data + position / 8));
  return _mm512_srlv_epi64(bytes, _mm512_and_si512(groups, _mm512_set1_epi64(7)));
}

// 256 entries.
struct Map {
  __m512i rows[4];

  explicit Map(const uint8_t* map) {
    for (int row = 0; row < 4; ++row) rows[row] = _mm512_loadu_si512(map + 64 * row);
  }
  __m512i operator()(__m512i bytes) const {
    const __m512i low = _mm512_permutex2var_epi8(rows[0], bytes, rows[1]);
    const __m512i high = _mm512_permutex2var_epi8(rows[2], bytes, rows[3]);
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(bytes), low, high);
  }
};

constexpr uint8_t kNoMap[256] = {};

// What codes stand for.
template <Codes kCodes, bool kOneTable>
inline __m512i finish(const Part& part, const Lanes& lanes, __m512i windows, const Map& map) {
  __m512i values = _mm512_multishift_epi64_epi8(part.begins, windows);
  if (kCodes == Codes::nibbles) {  // the bits of the high nibble follow those of the low one
    const __m512i high_begins = _mm512_add_epi8(part.begins, entries<kOneTable>(lanes.lift, part.classes));
    const __m512i high = _mm512_multishift_epi64_epi8(high_begins, windows);
    values = _mm512_ternarylogic_epi64(_mm512_set1_epi8(15), values, high, 0xca);
  }
  const __m512i codes =
      _mm512_add_epi8(_mm512_and_si512(values, part.masks), entries<kOneTable>(lanes.base, part.classes));
  return kCodes == Codes::folded ? unfold(codes) : kCodes == Codes::ranks ? map(codes) : codes;
}

template <Codes kCodes, bool kOneTable>
int32_t expand_pieces(const uint8_t* nibbles, int64_t pieces, const LaneTable* tables, const RankMap* ranks,
                      BitSource* extras, uint8_t* out) {
  const Map map(kCodes == Codes::ranks ? ranks->nibbles : kNoMap);
  const uint8_t* const data = extras->data;
  const uint64_t end = 8 * static_cast<uint64_t>(extras->bytes);
  uint64_t position = static_cast<uint64_t>(extras->position);
  const auto lanes_of = [&, one = load_lanes(tables[0])](int64_t piece) {
    return kOneTable ? one : load_lanes(tables[piece % kPanelPieces]);
  };
  const auto look_up_from = [&](int64_t piece) {
    piece = piece < pieces ? piece : pieces - 1;
    return look_up<kOneTable>(nibbles + piece * (kPiece / 2), lanes_of(piece));
  };
  Piece piece = look_up_from(0), next = look_up_from(1);
  if (position > end) return 0;
  __m512i bits = windows(piece.groups, data, position);
  for (int64_t done = 0; done < pieces; ++done, out += kPiece) {
    // As much of what comes next: to decode takes longer than to read.
    _mm_prefetch(extras->next + done * kPiece, _MM_HINT_T1);
    // What the next two need meanwhile: in one piece alone each vector waits for the one before.
    const Piece later = look_up_from(done + 2);
    position += all_bits(piece.groups);
    if (position > end) return 0;
    const __m512i next_bits = windows(next.groups, data, position);
    _mm512_storeu_si512(out, finish<kCodes, kOneTable>(piece.part, lanes_of(done), bits, map));
    piece = next;
    next = later;
    bits = next_bits;
  }
  extras->position = static_cast<int64_t>(position);
  return 1;
}

// The bytes of two vectors in turn.
struct InTurn {
  alignas(64) uint8_t places[2 * kPiece];
  constexpr InTurn() : places() {
    for (int i = 0; i < 2 * kPiece; ++i) places[i] = static_cast<uint8_t>(i / 2 + i % 2 * kPiece);
  }
};
constexpr InTurn kInTurn;

inline void store_in_turn(__m512i even, __m512i odd, uint8_t* out) {
  for (int64_t at = 0; at < 2 * kPiece; at += kPiece) {
    _mm512_storeu_si512(out + at, _mm512_permutex2var_epi8(even, _mm512_load_si512(kInTurn.places + at), odd));
  }
}

constexpr int64_t kRun = 8;  // pieces that are expanded one by one if they do not fit

// Runs, two pieces at a time, while they fit. Returns how many pieces those were.
template <Codes kCodes>
int64_t expand_fitting(const uint8_t* nibbles, int64_t pieces, const LaneTable& table, const RankMap* ranks,
                       BitSource* extras, uint8_t* out) {
  const int64_t last = pieces / kRun * kRun - 2;
  if (last < 0) return 0;
  const Map map(kCodes == Codes::ranks ? ranks->nibbles : kNoMap);
  const Lanes lanes = load_lanes(table);
  const uint8_t *const data = extras->data, *fetched = extras->next;
  const uint64_t end = 8 * static_cast<uint64_t>(extras->bytes);
  uint64_t position = static_cast<uint64_t>(extras->position);
  Pieces two = look_up_two(nibbles, lanes);
  Pieces next = look_up_two(nibbles + kPiece, lanes);
  __m512i bits = windows(two.groups, data, position);
  for (int64_t done = 0; done <= last;) {
    __m512i most = two.ends;
    for (const int64_t run_end = done + kRun; done < run_end; done += 2) {
      _mm_prefetch(fetched + done * kPiece, _MM_HINT_T1);
      _mm_prefetch(fetched + (done + 1) * kPiece, _MM_HINT_T1);
      const int64_t following = done + 2 < last ? done + 4 : last;
      const Pieces later = look_up_two(nibbles + following * (kPiece / 2), lanes);
      position += all_bits(two.groups);
      if (position > end) return done / kRun * kRun;
      const __m512i next_bits = windows(next.groups, data, position);
      store_in_turn(finish<kCodes, true>(two.even, lanes, bits, map), finish<kCodes, true>(two.odd, lanes, bits, map),
                    out + done * kPiece);
      most = _mm512_max_epu8(most, two.ends);
      two = next;
      next = later;
      bits = next_bits;
    }
    if (_mm512_cmpgt_epu8_mask(most, _mm512_set1_epi8(kWindowBits)) != 0) return done - kRun;
    extras->position = static_cast<int64_t>(position);
  }
  return last + 2;
}

template <Codes kCodes>
int32_t expand_mixed(const uint8_t* nibbles, int64_t pieces, const LaneTable* tables, const RankMap* ranks,
                     BitSource* extras, uint8_t* out) {
  BitSource rest = *extras;
  const auto go_on = [&](int64_t done) {
    nibbles += done * (kPiece / 2);
    pieces -= done;
    out += done * kPiece;
    rest.next += done * kPiece;
  };
  while (pieces > 0) {
    go_on(expand_fitting<kCodes>(nibbles, pieces, *tables, ranks, &rest, out));
    const int64_t run = pieces < kRun ? pieces : kRun;
    if (run > 0 && !expand_pieces<kCodes, true>(nibbles, run, tables, ranks, &rest, out)) return 0;
    go_on(run);
  }
  extras->position = rest.position;
  return rest.position <= 8 * rest.bytes;
}

// Where classes and extra bits are nibbles.
int32_t expand_nibbles(const uint8_t* nibbles, int64_t pieces, const LaneTable& table, BitSource* extras,
                       uint8_t* out) {
  const auto load = [](const uint8_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); };
  const uint8_t* data = extras->data + extras->position / 8;
  extras->position += 4 * pieces * kPiece;
  if (extras->position > 8 * extras->bytes) return 0;
  const __m256i bases = load(table.base), low = _mm256_set1_epi8(15);
  const auto codes = [&](__m256i classes, __m256i bits) {
    const __m256i base = _mm256_shuffle_epi8(bases, _mm256_and_si256(classes, low));
    return _mm512_castsi256_si512(_mm256_or_si256(base, _mm256_and_si256(bits, low)));
  };
  for (int64_t piece = 0; piece < pieces; ++piece, nibbles += kPiece / 2, data += kPiece / 2, out += kPiece) {
    _mm_prefetch(extras->next + piece * kPiece, _MM_HINT_T1);
    const __m256i classes = load(nibbles), bits = load(data);
    const __m512i even = codes(classes, bits);
    const __m512i odd = codes(_mm256_srli_epi16(classes, 4), _mm256_srli_epi16(bits, 4));
    _mm512_storeu_si512(out, _mm512_permutex2var_epi8(even, _mm512_load_si512(kInTurn.places), odd));
  }
  return 1;
}

constexpr int64_t kFewBits = 40;  // of 16 codes: hardly any 16 then have more than fit a window

template <Codes kCodes>
auto expander(bool one_table, bool few_bits) {
  return !one_table ? expand_pieces<kCodes, false> : few_bits ? expand_mixed<kCodes> : expand_pieces<kCodes, true>;
}

int32_t expand(const uint8_t* nibbles, int64_t count, const LaneTable* tables, bool one_table, Codes codes,
               const RankMap* ranks, BitSource* extras, uint8_t* out) {
  if (one_table && codes == Codes::values && extras->position % 8 == 0 && only_nibbles(tables[0])) {
    return expand_nibbles(nibbles, count / kPiece, tables[0], extras, out);
  }
  const bool few_bits = 16 * 8 * extras->bytes < kFewBits * extras->codes;
  const auto run = codes == Codes::values    ? expander<Codes::values>(one_table, few_bits)
                   : codes == Codes::folded  ? expander<Codes::folded>(one_table, few_bits)
                   : codes == Codes::nibbles ? expander<Codes::nibbles>(true, few_bits)
                                             : expander<Codes::ranks>(true, few_bits);
  return run(nibbles, count / kPiece, tables, ranks, extras, out);
}

void permute(const uint8_t* map, int64_t, int64_t count, const uint8_t* from, uint8_t* to) {
  const Map entries(map);
  for (int64_t at = 0; at < count; at += kPiece) {
    _mm512_storeu_si512(to + at, entries(_mm512_loadu_si512(from + at)));
  }
}

// One table is searched for each of the 256 codes, not for each of the values.
void classify_by_map(const uint8_t* values, int64_t count, const CutTable* tables, bool one_table, bool folded,
                     uint8_t* codes, uint8_t* classes) {
  constexpr int64_t kCodes = 256;
  if (!one_table || count <= kCodes) return classify(values, count, tables, one_table, folded, codes, classes);
  uint8_t all[kCodes], map[kCodes];
  for (int64_t code = 0; code < kCodes; ++code) all[code] = static_cast<uint8_t>(code);
  classify(all, kCodes, tables, true, false, all, map);
  const Map class_of(map);
  for (int64_t at = 0; at < count; at += kPiece) {
    const __m512i value = _mm512_loadu_si512(values + at), code = folded ? fold(value) : value;
    _mm512_storeu_si512(codes + at, code);
    _mm512_storeu_si512(classes + at, class_of(code));
  }
}

// What has this part of `extras`, and the rest where it is put.
inline __m512i join(__m512i extras, __m512i part, __m512i rest) {
  return _mm512_ternarylogic_epi64(extras, part, rest, 0xea);
}

// Extra bits that lie in both nibbles of a code become its lowest ones.
class GapCloser {
 public:
  explicit GapCloser(const LaneTable& table) {
    static constexpr uint64_t kOnes[2] = {0x7f3f1f0f07030100, 0};  // by their number
    const __m512i ones = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(kOnes)));
    const Lanes lanes = load_lanes(table);
    const __m512i bits = _mm512_shuffle_epi8(ones, _mm512_popcnt_epi8(lanes.mask));
    high_ = _mm512_andnot_si512(_mm512_and_si512(lanes.mask, _mm512_set1_epi8(15)), bits);
    lift_ = lanes.lift;
  }
  __m512i operator()(__m512i extras, __m512i classes) const {
    const __m512i bytes = _mm512_set1_epi64(0x3830282018100800), low = _mm512_set1_epi8(15);
    const __m512i begins = _mm512_sub_epi8(bytes, _mm512_shuffle_epi8(lift_, classes));
    const __m512i moved = _mm512_multishift_epi64_epi8(begins, extras);
    return join(moved, _mm512_shuffle_epi8(high_, classes), _mm512_and_si512(extras, low));
  }

 private:
  __m512i lift_, high_;  // by class: how much further up the bits of the high nibble go, and where they are then
};

// Whether the ones of each mask are its lowest bits.
bool no_gaps(const LaneTable& table) {
  const __m512i masks = _mm512_load_si512(table.mask);
  return _mm512_test_epi8_mask(masks, _mm512_add_epi8(masks, _mm512_set1_epi8(1))) == 0;
}

// Joins the extra bits of two, four, eight and, where they are few, 16 codes at once.
template <bool kGaps>
Appender pack_joined(const uint8_t* codes, const uint8_t* classes, int64_t pieces, const LaneTable* tables,
                     bool one_table, uint8_t* nibbles, Appender appender) {
  const GapCloser close_gaps(tables[0]);
  const __m512i byte = _mm512_set1_epi16(0xff), word = _mm512_set1_epi32(0xffff), half = _mm512_set1_epi64(0xffffffff);
  for (int64_t piece = 0; piece < pieces; ++piece, codes += kPiece, classes += kPiece, nibbles += kPiece / 2) {
    const LaneTable& table = tables[one_table ? 0 : piece % kPanelPieces];
    const __m512i own = _mm512_loadu_si512(classes);
    store_nibbles(own, nibbles);
    __m512i extras =
        _mm512_sub_epi8(_mm512_loadu_si512(codes), _mm512_shuffle_epi8(_mm512_load_si512(table.base), own));
    if (kGaps) extras = close_gaps(extras, own);
    const __m512i bits = _mm512_popcnt_epi8(_mm512_shuffle_epi8(_mm512_load_si512(table.mask), own));
    extras = join(extras, byte, _mm512_sllv_epi16(_mm512_srli_epi16(extras, 8), _mm512_and_si512(bits, byte)));
    const __m512i of_two = _mm512_maddubs_epi16(bits, _mm512_set1_epi8(1));
    extras = join(extras, word, _mm512_sllv_epi32(_mm512_srli_epi32(extras, 16), _mm512_and_si512(of_two, word)));
    const __m512i of_four = _mm512_madd_epi16(of_two, _mm512_set1_epi16(1));
    extras = join(extras, half, _mm512_sllv_epi64(_mm512_srli_epi64(extras, 32), _mm512_and_si512(of_four, half)));
    const __m512i of_eight = _mm512_sad_epu8(bits, _mm512_setzero_si512());
    const auto other = [](__m512i groups) { return _mm512_shuffle_epi32(groups, static_cast<_MM_PERM_ENUM>(0x4e)); };
    const __m512i of_16 = _mm512_add_epi64(of_eight, other(of_eight));
    alignas(64) uint64_t groups[8], counts[8];
    if (_mm512_cmpgt_epu8_mask(of_16, _mm512_set1_epi8(kAppendedBits)) == 0) {
      _mm512_store_si512(groups, _mm512_or_si512(extras, _mm512_sllv_epi64(other(extras), of_eight)));
      _mm512_store_si512(counts, of_16);
#pragma GCC unroll 4
      for (int i = 0; i < 8; i += 2) appender.append(groups[i], counts[i]);
    } else {
      _mm512_store_si512(groups, extras);
      _mm512_store_si512(counts, of_eight);
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) appender.append(groups[i], counts[i]);
    }
  }
  return appender;
}

Appender pack_pieces(const uint8_t* codes, const uint8_t* classes, int64_t pieces, const LaneTable* tables,
                     bool one_table, uint8_t* nibbles, Appender appender) {
  const bool gaps = one_table && !no_gaps(tables[0]);
  return (gaps ? pack_joined<true> : pack_joined<false>)(codes, classes, pieces, tables, one_table, nibbles, appender);
}

// 0 to 63.
inline __m512i counting() {
  return _mm512_setr_epi64(0x0706050403020100, 0x0f0e0d0c0b0a0908, 0x1716151413121110, 0x1f1e1d1c1b1a1918,
                           0x2726252423222120, 0x2f2e2d2c2b2a2928, 0x3736353433323130, 0x3f3e3d3c3b3a3938);
}

// Counts for all pairs at once, for each high nibble in turn, how many pairs of it come before: those whose low nibble
// weighs less than the rest of the sum, of a smaller high nibble also as much.
void sort_pairs(const uint8_t* order, uint8_t* map) {
  const __m128i weights = _mm_loadu_si128(reinterpret_cast<const __m128i*>(order));
  const __m512i one = _mm512_set1_epi8(1), all = _mm512_set1_epi8(kClasses), low = _mm512_broadcast_i32x4(weights);
  const __m512i first = counting(), second = _mm512_add_epi8(first, _mm512_set1_epi8(kPiece));
  const __m512i rows = _mm512_and_si512(_mm512_srli_epi16(first, 4), _mm512_set1_epi8(3));
  __m512i lighter[2] = {};               // by weight: classes below it
  __m128i before = _mm_setzero_si128();  // by low nibble: smaller ones that weigh as much
  for (int i = 0; i < kClasses; ++i) {
    const __m512i weight = _mm512_set1_epi8(static_cast<char>(order[i]));
    lighter[0] = _mm512_mask_add_epi8(lighter[0], _mm512_cmpgt_epu8_mask(first, weight), lighter[0], one);
    lighter[1] = _mm512_mask_add_epi8(lighter[1], _mm512_cmpgt_epu8_mask(second, weight), lighter[1], one);
    const __m128i equal = _mm_cmpeq_epi8(weights, _mm512_castsi512_si128(weight));
    const __m128i later = _mm_cmpgt_epi8(_mm512_castsi512_si128(first), _mm_set1_epi8(static_cast<char>(i)));
    before = _mm_sub_epi8(before, _mm_and_si128(equal, later));
  }
  alignas(64) uint8_t ranks[256];
  for (int row = 0; row < kClasses; row += 4) {  // four high nibbles
    uint32_t highs;
    memcpy(&highs, order + row, sizeof(highs));
    const __m512i high = _mm512_shuffle_epi8(_mm512_set1_epi32(static_cast<int>(highs)), rows);
    const __m512i sums = _mm512_add_epi8(low, high);
    __m512i rank = _mm512_broadcast_i32x4(before);
    for (int i = 0; i < kClasses; ++i) {
      const __mmask64 larger = i < row ? ~uint64_t{0} : i < row + 3 ? ~uint64_t{0} << kClasses * (i + 1 - row) : 0;
      const __m512i sum = _mm512_mask_add_epi8(sums, larger, sums, one);
      const __m512i rest = _mm512_subs_epu8(sum, _mm512_set1_epi8(static_cast<char>(order[i])));
      const __m512i few = _mm512_permutex2var_epi8(lighter[0], rest, lighter[1]);
      rank = _mm512_add_epi8(rank, _mm512_mask_blend_epi8(_mm512_movepi8_mask(rest), few, all));
    }
    _mm512_store_si512(ranks + kClasses * row, rank);
  }
#pragma GCC unroll 8  // else it may take twice as long, by where its code lies
  for (int pair = 0; pair < 256; ++pair) map[ranks[pair]] = static_cast<uint8_t>(pair);
}

}  // namespace

extern const Kernel codec_avx512vbmi;
const Kernel codec_avx512vbmi = {Isa::avx512vbmi, expand, classify_by_map, pack,  permute, sort_pairs,
                                 add_range,       tile,   untile,          fence, extent,  checksum};

}  // namespace anynpu::codec
