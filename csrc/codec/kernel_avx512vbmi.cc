// SPDX-License-Identifier: Apache-2.0
// One shuffle gives each group of eight codes the 64 bits that hold its extra bits, one multishift each code its own.
#include "codec/avx512.inc"

namespace anynpu::codec {
namespace {

// The low byte of each 64-bit number in all of its bytes.
inline __m512i spread_low_byte(__m512i numbers) {
  const __m512i pattern = _mm512_set4_epi64(0x0808080808080808, 0, 0x0808080808080808, 0);
  return _mm512_shuffle_epi8(numbers, pattern);
}

// For each byte the sum of it and the bytes below, in its 64-bit number.
inline __m512i running_sum_of_bytes(__m512i bytes) {
  bytes = _mm512_add_epi8(bytes, _mm512_slli_epi64(bytes, 8));
  bytes = _mm512_add_epi8(bytes, _mm512_slli_epi64(bytes, 16));
  return _mm512_add_epi8(bytes, _mm512_slli_epi64(bytes, 32));
}

inline __m512i running_sum_of_numbers(__m512i numbers) {
  const __m512i zero = _mm512_setzero_si512();
  numbers = _mm512_add_epi64(numbers, _mm512_alignr_epi64(numbers, zero, 7));
  numbers = _mm512_add_epi64(numbers, _mm512_alignr_epi64(numbers, zero, 6));
  return _mm512_add_epi64(numbers, _mm512_alignr_epi64(numbers, zero, 4));
}

// Writes one piece and returns the position after it.
template <Codes kCodes>
inline uint64_t expand_piece(const uint8_t* nibbles, __m512i lane_bases, __m512i lane_masks, const uint8_t* extras,
                             uint64_t position, uint8_t* out) {
  const __m512i classes = spread_nibbles(nibbles);
  const __m512i masks = _mm512_shuffle_epi8(lane_masks, classes), bits = _mm512_popcnt_epi8(masks);
  const __m512i ends = running_sum_of_bytes(bits), of_group = _mm512_srli_epi64(ends, 56);
  const __m512i group_ends = running_sum_of_numbers(of_group);
  const __m512i first = _mm512_set1_epi64(static_cast<int64_t>(position % 8));
  const __m512i begins = _mm512_add_epi64(_mm512_sub_epi64(group_ends, of_group), first);  // of the groups
  const __m512i byte =
      _mm512_add_epi8(spread_low_byte(_mm512_srli_epi64(begins, 3)), _mm512_set1_epi64(0x0706050403020100));
  const __m512i windows = _mm512_permutexvar_epi8(byte, _mm512_loadu_si512(extras + position / 8));
  const __m512i shift = spread_low_byte(_mm512_and_si512(begins, _mm512_set1_epi64(7)));
  const __m512i places = _mm512_add_epi8(_mm512_sub_epi8(ends, bits), shift);
  __m512i values = _mm512_multishift_epi64_epi8(places, windows);
  if (kCodes == Codes::nibbles) {  // the bits of the high nibble follow those of the low one
    const __m512i low = _mm512_set1_epi8(15), low_bits = _mm512_popcnt_epi8(_mm512_and_si512(masks, low));
    const __m512i high_places = _mm512_add_epi8(places, _mm512_sub_epi8(low_bits, _mm512_set1_epi8(4)));
    values = _mm512_ternarylogic_epi64(low, values, _mm512_multishift_epi64_epi8(high_places, windows), 0xca);
  }
  values = _mm512_and_si512(values, masks);
  const __m512i code = _mm512_add_epi8(values, _mm512_shuffle_epi8(lane_bases, classes));
  _mm512_storeu_si512(out, kCodes == Codes::folded ? unfold(code) : code);
  const __m512i last = _mm512_alignr_epi64(group_ends, group_ends, 7);
  return position + static_cast<uint64_t>(_mm_cvtsi128_si64(_mm512_castsi512_si128(last)));
}

template <Codes kCodes>
int32_t expand_pieces(const uint8_t* nibbles, int64_t pieces, const LaneTable* tables, bool one_table,
                      BitSource* extras, uint8_t* out) {
  const uint64_t end = 8 * static_cast<uint64_t>(extras->bytes);
  uint64_t position = static_cast<uint64_t>(extras->position);
  for (int64_t piece = 0; piece < pieces; ++piece) {
    if (position > end) return 0;
    const LaneTable& table = tables[one_table ? 0 : piece % kPanelPieces];
    position = expand_piece<kCodes>(nibbles + piece * (kPiece / 2), _mm512_load_si512(table.base),
                                    _mm512_load_si512(table.mask), extras->data, position, out + piece * kPiece);
  }
  extras->position = static_cast<int64_t>(position);
  return position <= end;
}

// Where classes and extra bits are nibbles, what a code stands for is the exclusive or of what its class and its bits
// stand for.
template <bool kFolded>
int32_t expand_nibbles(const uint8_t* nibbles, int64_t pieces, const LaneTable& table, BitSource* extras,
                       uint8_t* out) {
  const uint8_t* data = extras->data + extras->position / 8;
  extras->position += 4 * pieces * kPiece;
  if (extras->position > 8 * extras->bytes) return 0;
  __m512i of_class = _mm512_load_si512(table.base);
  __m512i of_bits = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  if (kFolded) {
    of_class = unfold(of_class);
    of_bits = _mm512_xor_si512(unfold(of_bits), unfold(_mm512_setzero_si512()));
  }
  for (int64_t piece = 0; piece < pieces; ++piece, nibbles += kPiece / 2, data += kPiece / 2, out += kPiece) {
    __builtin_prefetch(extras->next + piece * kPiece);
    _mm512_storeu_si512(out, _mm512_xor_si512(_mm512_shuffle_epi8(of_class, spread_nibbles(nibbles)),
                                              _mm512_shuffle_epi8(of_bits, spread_nibbles(data))));
  }
  return 1;
}

int32_t expand(const uint8_t* nibbles, int64_t count, const LaneTable* tables, bool one_table, Codes codes,
               BitSource* extras, uint8_t* out) {
  if (one_table && codes != Codes::nibbles && extras->position % 8 == 0 && only_nibbles(tables[0])) {
    const auto nibbles_of = codes == Codes::folded ? expand_nibbles<true> : expand_nibbles<false>;
    return nibbles_of(nibbles, count / kPiece, tables[0], extras, out);
  }
  const auto pieces = codes == Codes::values   ? expand_pieces<Codes::values>
                      : codes == Codes::folded ? expand_pieces<Codes::folded>
                                               : expand_pieces<Codes::nibbles>;
  return pieces(nibbles, count / kPiece, tables, one_table, extras, out);
}

void permute(const uint8_t* map, int64_t, int64_t count, uint8_t* bytes) {
  __m512i rows[4];
  for (int row = 0; row < 4; ++row) rows[row] = _mm512_loadu_si512(map + 64 * row);
  for (int64_t at = 0; at < count; at += kPiece) {
    const __m512i codes = _mm512_loadu_si512(bytes + at);
    const __m512i low = _mm512_permutex2var_epi8(rows[0], codes, rows[1]);
    const __m512i high = _mm512_permutex2var_epi8(rows[2], codes, rows[3]);
    _mm512_storeu_si512(bytes + at, _mm512_mask_blend_epi8(_mm512_movepi8_mask(codes), low, high));
  }
}

}  // namespace

extern const Kernel codec_avx512vbmi;
const Kernel codec_avx512vbmi = {Isa::avx512vbmi, expand, classify, pack,   permute,
                                 add_range,       tile,   untile,   extent, checksum};

}  // namespace anynpu::codec
