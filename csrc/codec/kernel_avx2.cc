// SPDX-License-Identifier: Apache-2.0
#include "codec/checksum.inc"
#include "codec/expand_avx2.inc"
#include "codec/pack_bmi2.inc"
#include "codec/tile_avx2.inc"

namespace anynpu::codec {
namespace {

inline __m256i fold(__m256i value) {
  const __m256i number = _mm256_xor_si256(value, _mm256_set1_epi8(static_cast<char>(0x80)));
  const __m256i negative = _mm256_cmpgt_epi8(_mm256_setzero_si256(), number);
  return _mm256_xor_si256(_mm256_add_epi8(number, number), negative);
}

inline void classify_piece(const uint8_t* values, const CutTable& table, bool folded, uint8_t* codes, uint8_t* classes) {
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    const __m256i value = load(values + 32 * half), code = folded ? fold(value) : value;
    store(codes + 32 * half, code);
    const __m256i compared = _mm256_xor_si256(code, _mm256_set1_epi8(static_cast<char>(0x80)));
    const __m256i bounds = load(table.bound + 32 * half);
    __m256i node = _mm256_set1_epi8(1);
#pragma GCC unroll 4
    for (int step = 0; step < kCutSteps; ++step) {  // a shuffle takes the low nibble of 16 + range
      const __m256i above = _mm256_cmpgt_epi8(compared, _mm256_shuffle_epi8(bounds, node));
      node = _mm256_sub_epi8(_mm256_add_epi8(node, node), above);
    }
    store(classes + 32 * half, _mm256_shuffle_epi8(load(table.class_of + 32 * half), node));
  }
}

inline void cut(const uint8_t* codes, const uint8_t* classes, const LaneTable& table, uint8_t* nibbles, uint64_t* extras,
                uint64_t* masks) {
  __m256i pairs[2];
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    const __m256i own = load(classes + 32 * half);
    const __m256i base = _mm256_shuffle_epi8(load(table.base + 32 * half), own);
    store(extras + 4 * half, _mm256_sub_epi8(load(codes + 32 * half), base));
    store(masks + 4 * half, _mm256_shuffle_epi8(load(table.mask + 32 * half), own));
    pairs[half] = _mm256_maddubs_epi16(own, _mm256_set1_epi16(0x1001));
  }
  store(nibbles, _mm256_permute4x64_epi64(_mm256_packus_epi16(pairs[0], pairs[1]), 0xd8));
}

// One shuffle looks up 16 entries, or gives zero where the top bit of an index is set. Going down in steps of 16, an index
// meets the rows up to its own, which hold differences: their exclusive or is the entry.
void permute(const uint8_t* map, int64_t size, int64_t count, uint8_t* bytes) {
  constexpr int kHalfRows = 8;
  const int rows = static_cast<int>((size + 15) / 16);
  __m256i difference[2 * kHalfRows];
  for (int row = 0; row < rows; ++row) {
    const __m128i* entries = reinterpret_cast<const __m128i*>(map) + row;
    const __m128i before = row % kHalfRows == 0 ? _mm_setzero_si128() : _mm_loadu_si128(entries - 1);
    difference[row] = _mm256_broadcastsi128_si256(_mm_xor_si128(_mm_loadu_si128(entries), before));
  }
  const __m256i step = _mm256_set1_epi8(16);
  for (int64_t at = 0; at < count; at += 32) {
    __m256i low = load(bytes + at), high = _mm256_xor_si256(low, _mm256_set1_epi8(static_cast<char>(0x80)));
    __m256i result = _mm256_setzero_si256();
    for (int row = 0; row < rows && row < kHalfRows; ++row) {
      result = _mm256_xor_si256(result, _mm256_shuffle_epi8(difference[row], low));
      low = _mm256_subs_epi8(low, step);
    }
    for (int row = kHalfRows; row < rows; ++row) {
      result = _mm256_xor_si256(result, _mm256_shuffle_epi8(difference[row], high));
      high = _mm256_subs_epi8(high, step);
    }
    store(bytes + at, result);
  }
}

inline void mix_pieces(const uint8_t* bytes, int64_t pieces, uint32_t* lanes) {
  constexpr int kVectors = kHashLanes / 8;
  __m256i hash[kVectors];
  for (int i = 0; i < kVectors; ++i) hash[i] = load(lanes + 8 * i);
  const __m256i factor = _mm256_set1_epi32(static_cast<int>(kHashFactor));
  for (int64_t piece = 0; piece < pieces; ++piece, bytes += 4 * kHashLanes) {
#pragma GCC unroll 8
    for (int i = 0; i < kVectors; ++i) {
      const __m256i value = _mm256_xor_si256(hash[i], load(bytes + 32 * i));
      const __m256i rotated =
          _mm256_or_si256(_mm256_slli_epi32(value, kHashRotation), _mm256_srli_epi32(value, 32 - kHashRotation));
      hash[i] = _mm256_mullo_epi32(rotated, factor);
    }
  }
  for (int i = 0; i < kVectors; ++i) store(lanes + 8 * i, hash[i]);
}

}  // namespace

extern const Kernel codec_avx2;
const Kernel codec_avx2 = {Isa::avx2, expand, classify, pack, permute, add_range, tile, untile, extent, checksum};

}  // namespace anynpu::codec
