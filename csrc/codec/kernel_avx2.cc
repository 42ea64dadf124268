// SPDX-License-Identifier: Apache-2.0
#include "codec/expand_bmi2.inc"

namespace anynpu::codec {
namespace {

inline __m256i load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
inline void store(void* to, __m256i value) { _mm256_storeu_si256(static_cast<__m256i*>(to), value); }

inline void classify(const uint8_t* nibbles, const LaneTable& table, uint64_t* mask, uint64_t* base, uint64_t* bits) {
  for (int half = 0; half < 2; ++half) {
    const __m256i wide =
        _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(nibbles + 16 * half)));
    const __m256i classes = _mm256_and_si256(_mm256_or_si256(wide, _mm256_slli_epi16(wide, 4)), _mm256_set1_epi8(15));
    const __m256i counts = _mm256_shuffle_epi8(load(table.bits + 32 * half), classes);
    store(mask + 4 * half, _mm256_shuffle_epi8(load(table.mask + 32 * half), classes));
    store(base + 4 * half, _mm256_shuffle_epi8(load(table.base + 32 * half), classes));
    store(bits + 4 * half, _mm256_sad_epu8(counts, _mm256_setzero_si256()));
  }
}

inline void finish_piece(uint8_t* codes, const uint64_t* base, bool folded) {
  for (int half = 0; half < 2; ++half) {
    const __m256i code = _mm256_add_epi8(load(codes + 32 * half), load(base + 4 * half));
    if (!folded) {
      store(codes + 32 * half, code);
      continue;
    }
    const __m256i magnitude = _mm256_and_si256(_mm256_srli_epi16(code, 1), _mm256_set1_epi8(0x7f));
    const __m256i odd = _mm256_and_si256(code, _mm256_set1_epi8(1));
    const __m256i flip = _mm256_sub_epi8(_mm256_set1_epi8(static_cast<char>(0x80)), odd);  // 0x80, or 0x7f when odd
    store(codes + 32 * half, _mm256_xor_si256(magnitude, flip));
  }
}

// 256 entries as 16 shuffles: a byte outside a row of 16 gets its top bit set, which shuffles to zero.
void permute(const uint8_t* map, int64_t count, uint8_t* bytes) {
  for (int64_t at = 0; at < count; at += 32) {
    const __m256i codes = load(bytes + at);
    __m256i result = _mm256_setzero_si256();
    for (int row = 0; row < 16; ++row) {
      const __m256i table = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(map) + row));
      const __m256i relative = _mm256_sub_epi8(codes, _mm256_set1_epi8(static_cast<char>(16 * row)));
      const __m256i index = _mm256_adds_epu8(relative, _mm256_set1_epi8(0x70));
      result = _mm256_or_si256(result, _mm256_shuffle_epi8(table, index));
    }
    store(bytes + at, result);
  }
}

}  // namespace

extern const Kernel codec_avx2;
const Kernel codec_avx2 = {Isa::avx2, expand, permute, checksum};

}  // namespace anynpu::codec
