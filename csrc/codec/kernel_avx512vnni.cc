// SPDX-License-Identifier: Apache-2.0
#include "codec/avx512.inc"
#include "codec/expand_avx2.inc"
#include "codec/pack_bmi2.inc"
#include "codec/sort_pairs.inc"

namespace anynpu::codec {
namespace {

// 256 entries as 16 shuffles: each sees the bytes with its high nibble.
void permute(const uint8_t* map, int64_t size, int64_t count, const uint8_t* from, uint8_t* to) {
  for (int64_t at = 0; at < count; at += kPiece) {
    const __m512i codes = _mm512_loadu_si512(from + at);
    const __m512i high = _mm512_and_si512(codes, _mm512_set1_epi8(static_cast<char>(0xf0)));
    const __m512i low = _mm512_and_si512(codes, _mm512_set1_epi8(15));
    __m512i result = _mm512_setzero_si512();
    for (int row = 0; 16 * row < size; ++row) {
      const __m512i table = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(map + 16 * row)));
      const __mmask64 here = _mm512_cmpeq_epi8_mask(high, _mm512_set1_epi8(static_cast<char>(16 * row)));
      result = _mm512_mask_shuffle_epi8(result, here, table, low);
    }
    _mm512_storeu_si512(to + at, result);
  }
}

inline void cut(const uint8_t* codes, const uint8_t* classes, const LaneTable& table, uint8_t* nibbles,
                uint64_t* extras, uint64_t* masks) {
  const __m512i own = _mm512_loadu_si512(classes), base = _mm512_shuffle_epi8(_mm512_load_si512(table.base), own);
  _mm512_store_si512(extras, _mm512_sub_epi8(_mm512_loadu_si512(codes), base));
  _mm512_store_si512(masks, _mm512_shuffle_epi8(_mm512_load_si512(table.mask), own));
  store_nibbles(own, nibbles);
}

}  // namespace

extern const Kernel codec_avx512vnni;
const Kernel codec_avx512vnni = {Isa::avx512vnni, expand, classify, pack,  permute, sort_pairs,
                                 add_range,       tile,   untile,   fence, extent,  checksum};

}  // namespace anynpu::codec
