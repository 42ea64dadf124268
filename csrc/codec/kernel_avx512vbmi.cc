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

// What is known of a piece before its place in the extra bits is.
struct Piece {
  __m512i classes, masks;
  __m512i begins;  // of a code, in bits, in its group of eight
  __m512i groups;  // of bits before a group; in place of the first, which has none, those of all groups

  uint64_t bits() const { return static_cast<uint64_t>(_mm_cvtsi128_si64(_mm512_castsi512_si128(groups))); }
};

template <bool kOneTable>
inline Piece look_up(const uint8_t* nibbles, const Lanes& lanes) {
  // Of each code its nibble and the one after.
  const __m512i words = _mm512_cvtepu32_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(nibbles)));
  const __m512i pairs = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(0x1c1814100c080400), words);
  const __m512i classes = kOneTable ? pairs : _mm512_and_si512(pairs, _mm512_set1_epi8(15));
  const __m512i masks = entries<kOneTable>(lanes.mask, classes), bits = _mm512_popcnt_epi8(masks);
  const __m512i ends = _mm512_mullo_epi64(bits, _mm512_set1_epi8(1));  // the sums of the bytes up to each
  const __m512i last_bytes = _mm512_set1_epi64(0x3f372f271f170f07);
  const __m512i before = _mm512_maskz_permutexvar_epi8(0x7f3f1f0f070301ff, last_bytes, ends);
  return {classes, masks, _mm512_sub_epi8(ends, bits), _mm512_sad_epu8(before, _mm512_setzero_si512())};
}

// The codes of a piece. Its extra bits begin at bit `first`, below 8, of `stream`.
template <Codes kCodes, bool kOneTable>
inline __m512i finish(const Piece& piece, const Lanes& lanes, __m512i stream, const uint64_t* first) {
  const __m512i start = _mm512_set1_epi64(static_cast<int64_t>(*first));
  const __m512i groups = _mm512_mask_add_epi64(start, 0xfe, start, piece.groups);
  const __m512i byte = _mm512_multishift_epi64_epi8(_mm512_set1_epi8(3), groups);  // of 9 bits all but the lowest 3
  const __m512i bytes = _mm512_permutexvar_epi8(_mm512_add_epi8(byte, _mm512_set1_epi64(0x0706050403020100)), stream);
  // 57 bits or more, and eight codes have at most 56.
  const __m512i window = _mm512_srlv_epi64(bytes, _mm512_and_si512(groups, _mm512_set1_epi64(7)));
  __m512i values = _mm512_multishift_epi64_epi8(piece.begins, window);
  if (kCodes == Codes::nibbles) {  // the bits of the high nibble follow those of the low one
    const __m512i high_begins = _mm512_add_epi8(piece.begins, entries<kOneTable>(lanes.lift, piece.classes));
    const __m512i high = _mm512_multishift_epi64_epi8(high_begins, window);
    values = _mm512_ternarylogic_epi64(_mm512_set1_epi8(15), values, high, 0xca);
  }
  return _mm512_add_epi8(_mm512_and_si512(values, piece.masks), entries<kOneTable>(lanes.base, piece.classes));
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

template <Codes kCodes, bool kOneTable>
int32_t expand_pieces(const uint8_t* nibbles, int64_t pieces, const LaneTable* tables, const RankMap* ranks,
                      BitSource* extras, uint8_t* out) {
  static constexpr uint64_t kFirst[8] = {0, 1, 2, 3, 4, 5, 6, 7};  // memory fills a vector for less than a register
  static constexpr uint8_t kNoMap[256] = {};
  const Map map(kCodes == Codes::ranks ? ranks->nibbles : kNoMap);
  const uint8_t* const data = extras->data;
  const uint64_t end = 8 * static_cast<uint64_t>(extras->bytes);
  uint64_t position = static_cast<uint64_t>(extras->position);
  Lanes lanes = load_lanes(tables[0]);
  Piece piece = look_up<kOneTable>(nibbles, lanes);
  for (int64_t done = 0; done < pieces; ++done, out += kPiece) {
    if (position > end) return 0;
    // As much of what comes next: to decode takes longer than to read.
    _mm_prefetch(extras->next + done * kPiece, _MM_HINT_T1);
    // The next one meanwhile: in one piece alone each vector waits for the one before.
    const int64_t following = done + 1 < pieces ? done + 1 : done;
    const Lanes next_lanes = kOneTable ? lanes : load_lanes(tables[following % kPanelPieces]);
    const Piece next = look_up<kOneTable>(nibbles + following * (kPiece / 2), next_lanes);
    const __m512i stream = _mm512_loadu_si512(data + position / 8);
    const __m512i codes = finish<kCodes, kOneTable>(piece, lanes, stream, kFirst + position % 8);
    _mm512_storeu_si512(out, kCodes == Codes::folded ? unfold(codes) : kCodes == Codes::ranks ? map(codes) : codes);
    position += piece.bits();
    lanes = next_lanes;
    piece = next;
  }
  extras->position = static_cast<int64_t>(position);
  return position <= end;
}

// The bytes of two vectors of 32 in turn.
struct InTurn {
  alignas(64) uint8_t places[kPiece];
  constexpr InTurn() : places() {
    for (int i = 0; i < kPiece; ++i) places[i] = static_cast<uint8_t>(i / 2 + i % 2 * kPiece);
  }
};

// Where classes and extra bits are nibbles.
int32_t expand_nibbles(const uint8_t* nibbles, int64_t pieces, const LaneTable& table, BitSource* extras,
                       uint8_t* out) {
  static constexpr InTurn kInTurn;
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

int32_t expand(const uint8_t* nibbles, int64_t count, const LaneTable* tables, bool one_table, Codes codes,
               const RankMap* ranks, BitSource* extras, uint8_t* out) {
  if (one_table && codes == Codes::values && extras->position % 8 == 0 && only_nibbles(tables[0])) {
    return expand_nibbles(nibbles, count / kPiece, tables[0], extras, out);
  }
  const auto values = one_table ? expand_pieces<Codes::values, true> : expand_pieces<Codes::values, false>;
  const auto folded = one_table ? expand_pieces<Codes::folded, true> : expand_pieces<Codes::folded, false>;
  const auto pieces = codes == Codes::values    ? values
                      : codes == Codes::folded  ? folded
                      : codes == Codes::nibbles ? expand_pieces<Codes::nibbles, true>
                                                : expand_pieces<Codes::ranks, true>;
  return pieces(nibbles, count / kPiece, tables, ranks, extras, out);
}

void permute(const uint8_t* map, int64_t, int64_t count, uint8_t* bytes) {
  const Map entries(map);
  for (int64_t at = 0; at < count; at += kPiece) {
    _mm512_storeu_si512(bytes + at, entries(_mm512_loadu_si512(bytes + at)));
  }
}

}  // namespace

extern const Kernel codec_avx512vbmi;
const Kernel codec_avx512vbmi = {Isa::avx512vbmi, expand, classify, pack,   permute,
                                 add_range,       tile,   untile,   extent, checksum};

}  // namespace anynpu::codec
