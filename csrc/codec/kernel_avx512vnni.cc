// SPDX-License-Identifier: Apache-2.0
#include "codec/expand_bmi2.inc"

namespace anynpu::codec {
namespace {

inline void classify(const uint8_t* nibbles, const LaneTable& table, uint64_t* mask, uint64_t* base, uint64_t* bits) {
  const __m256i packed = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(nibbles));
  const __m512i wide = _mm512_cvtepu8_epi16(packed);
  const __m512i classes =
      _mm512_and_si512(_mm512_or_si512(wide, _mm512_slli_epi16(wide, 4)), _mm512_set1_epi8(15));
  const __m512i counts = _mm512_shuffle_epi8(_mm512_load_si512(table.bits), classes);
  _mm512_store_si512(mask, _mm512_shuffle_epi8(_mm512_load_si512(table.mask), classes));
  _mm512_store_si512(base, _mm512_shuffle_epi8(_mm512_load_si512(table.base), classes));
  _mm512_store_si512(bits, _mm512_sad_epu8(counts, _mm512_setzero_si512()));
}

inline void finish_piece(uint8_t* codes, const uint64_t* base, bool folded) {
  const __m512i code = _mm512_add_epi8(_mm512_loadu_si512(codes), _mm512_load_si512(base));
  if (!folded) return _mm512_storeu_si512(codes, code);
  const __m512i half = _mm512_and_si512(_mm512_srli_epi16(code, 1), _mm512_set1_epi8(0x7f));
  const __m512i odd = _mm512_and_si512(code, _mm512_set1_epi8(1));
  const __m512i flip = _mm512_sub_epi8(_mm512_set1_epi8(static_cast<char>(0x80)), odd);  // 0x80, or 0x7f when odd
  _mm512_storeu_si512(codes, _mm512_xor_si512(half, flip));
}

// 256 entries as 16 shuffles: each sees the bytes with its high nibble.
void permute(const uint8_t* map, int64_t count, uint8_t* bytes) {
  for (int64_t at = 0; at < count; at += kPiece) {
    const __m512i codes = _mm512_loadu_si512(bytes + at);
    const __m512i high = _mm512_and_si512(codes, _mm512_set1_epi8(static_cast<char>(0xf0)));
    const __m512i low = _mm512_and_si512(codes, _mm512_set1_epi8(15));
    __m512i result = _mm512_setzero_si512();
    for (int row = 0; row < 16; ++row) {
      const __m512i table = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(map + 16 * row)));
      const __mmask64 here = _mm512_cmpeq_epi8_mask(high, _mm512_set1_epi8(static_cast<char>(16 * row)));
      result = _mm512_mask_shuffle_epi8(result, here, table, low);
    }
    _mm512_storeu_si512(bytes + at, result);
  }
}

}  // namespace

extern const Kernel codec_avx512vnni;
const Kernel codec_avx512vnni = {Isa::avx512vnni, expand, permute, checksum};

}  // namespace anynpu::codec
