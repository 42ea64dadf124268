// SPDX-License-Identifier: Apache-2.0
#include "codec/checksum.inc"
#include "codec/expand_avx2.inc"
#include "codec/sort_pairs.inc"
#include "codec/pack_bmi2.inc"
#include "codec/tile_avx2.inc"

namespace anynpu::codec {
namespace {

inline __m256i fold(__m256i value) {
  const __m256i number = _mm256_xor_si256(value, _mm256_set1_epi8(static_cast<char>(0x80)));
  const __m256i negative = _mm256_cmpgt_epi8(_mm256_setzero_si256(), number);
  return _mm256_xor_si256(_mm256_add_epi8(number, number), negative);
}

inline void classify_piece(const uint8_t* values, const CutTable& table, bool folded, uint8_t* codes,
                           uint8_t* classes) {
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

inline void cut(const uint8_t* codes, const uint8_t* classes, const LaneTable& table, uint8_t* nibbles,
                uint64_t* extras, uint64_t* masks) {
  const __m256i own[2] = {load(classes), load(classes + 32)};
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    const __m256i base = _mm256_shuffle_epi8(load(table.base + 32 * half), own[half]);
    store(extras + 4 * half, _mm256_sub_epi8(load(codes + 32 * half), base));
    store(masks + 4 * half, _mm256_shuffle_epi8(load(table.mask + 32 * half), own[half]));
  }
  join_nibbles(own[0], own[1], nibbles);
}

struct TwoVectors {
  __m256i of[2];
};

// Entries of 2^kRowsLog2 rows of 16: one shuffle looks up those of a row, `bits` of the row's number choose between
// them.
template <int kRowsLog2>
inline TwoVectors look_up_rows(const __m256i* rows, const TwoVectors& low, const TwoVectors* bits) {
  TwoVectors entries;
  if constexpr (kRowsLog2 == 0) {
    for (int i = 0; i < 2; ++i) entries.of[i] = _mm256_shuffle_epi8(*rows, low.of[i]);
  } else {
    constexpr int kHalf = 1 << (kRowsLog2 - 1);
    const TwoVectors lower = look_up_rows<kRowsLog2 - 1>(rows, low, bits);
    const TwoVectors upper = look_up_rows<kRowsLog2 - 1>(rows + kHalf, low, bits);
    for (int i = 0; i < 2; ++i) {
      entries.of[i] = _mm256_blendv_epi8(lower.of[i], upper.of[i], bits[kRowsLog2 - 1].of[i]);
    }
  }
  return entries;
}

template <int kRowsLog2>
void permute_rows(const __m256i* rows, int64_t count, const uint8_t* from, uint8_t* to) {
  for (int64_t at = 0; at < count; at += kPiece) {
    TwoVectors low, bits[4];  // each bit is the highest of a byte
    for (int i = 0; i < 2; ++i) {
      const __m256i codes = load(from + at + 32 * i);
      low.of[i] = _mm256_and_si256(codes, _mm256_set1_epi8(15));
      bits[3].of[i] = codes;
      for (int bit = 2; bit >= 0; --bit) bits[bit].of[i] = _mm256_add_epi8(bits[bit + 1].of[i], bits[bit + 1].of[i]);
    }
    const TwoVectors entries = look_up_rows<kRowsLog2>(rows, low, bits);
    for (int i = 0; i < 2; ++i) store(to + at + 32 * i, entries.of[i]);
  }
}

void permute(const uint8_t* map, int64_t size, int64_t count, const uint8_t* from, uint8_t* to) {
  __m256i rows[16];
  for (int row = 0; row < 16; ++row) {
    rows[row] = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(map) + row));
  }
  const auto run = size > 128  ? permute_rows<4>
                   : size > 64 ? permute_rows<3>
                   : size > 32 ? permute_rows<2>
                               : permute_rows<1>;
  run(rows, count, from, to);
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
const Kernel codec_avx2 = {Isa::avx2, expand, classify, pack,  permute, sort_pairs,
                           add_range, tile,   untile,   fence, extent,  checksum};

}  // namespace anynpu::codec
