// SPDX-License-Identifier: Apache-2.0
// The AMX intrinsics that the kernels use, by AVX2: included before every AMX unit of an emulated build, after
// simd/emulated_avx512.h. tests/native/amx_calls.inc compares them with the instructions on a CPU that has both.
#pragma once

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbssd
#undef _tile_dpbsud
#undef _tile_dpbf16ps

namespace anynpu {
namespace {

#define ANYNPU_TILE __attribute__((unused)) inline

struct EmulatedTiles {
  uint16_t row_bytes[8];
  uint8_t rows[8];
  uint8_t data[8][16][64];
};

ANYNPU_TILE EmulatedTiles& emulated_tiles() {
  static thread_local EmulatedTiles tiles;
  return tiles;
}

ANYNPU_TILE void _tile_release() { memset(&emulated_tiles(), 0, sizeof(EmulatedTiles)); }

ANYNPU_TILE void _tile_loadconfig(const void* shapes) {
  _tile_release();
  EmulatedTiles& tiles = emulated_tiles();
  memcpy(tiles.row_bytes, static_cast<const uint8_t*>(shapes) + 16, sizeof(tiles.row_bytes));
  memcpy(tiles.rows, static_cast<const uint8_t*>(shapes) + 48, sizeof(tiles.rows));
}

// Where the CPU would raise an exception.
ANYNPU_TILE void require(bool holds) {
  if (!holds) __builtin_trap();
}

ANYNPU_TILE void _tile_zero(int tile) {
  require(emulated_tiles().rows[tile] > 0);
  memset(emulated_tiles().data[tile], 0, sizeof(emulated_tiles().data[tile]));
}

ANYNPU_TILE void _tile_loadd(int tile, const void* from, int64_t stride) {
  EmulatedTiles& tiles = emulated_tiles();
  _tile_zero(tile);
  for (int64_t row = 0; row < tiles.rows[tile]; ++row) {
    memcpy(tiles.data[tile][row], static_cast<const uint8_t*>(from) + row * stride, tiles.row_bytes[tile]);
  }
}

ANYNPU_TILE void _tile_stored(int tile, void* to, int64_t stride) {
  const EmulatedTiles& tiles = emulated_tiles();
  require(tiles.rows[tile] > 0);
  for (int64_t row = 0; row < tiles.rows[tile]; ++row) {
    memcpy(static_cast<uint8_t*>(to) + row * stride, tiles.data[tile][row], tiles.row_bytes[tile]);
  }
}

ANYNPU_TILE void require_product(int sums, int a, int b) {
  const EmulatedTiles& tiles = emulated_tiles();
  require(tiles.rows[sums] > 0 && tiles.rows[sums] == tiles.rows[a] && tiles.row_bytes[sums] == tiles.row_bytes[b]);
  require(tiles.row_bytes[a] == 4 * tiles.rows[b] && sums != a && sums != b && a != b);
}

// sums[m][n] += the sum over k of a[m][k] * b[k / 4][4 * n + k % 4], modulo 2^32. Past its columns a tile holds zeros.
template <typename A, typename B>
ANYNPU_TILE void tile_products(int sums, int a, int b) {
  EmulatedTiles& tiles = emulated_tiles();
  require_product(sums, a, b);
  alignas(32) int16_t factors[16][64];
  for (int k = 0; k < tiles.rows[b]; ++k) {
    for (int i = 0; i < 64; ++i) factors[k][i] = static_cast<B>(tiles.data[b][k][i]);
  }
  for (int m = 0; m < tiles.rows[a]; ++m) {
    __m256i pairs[4] = {};  // two sums for each of four columns
    for (int k = 0; k < tiles.rows[b]; ++k) {
      int16_t x[4];
      for (int i = 0; i < 4; ++i) x[i] = static_cast<A>(tiles.data[a][m][4 * k + i]);
      int64_t four;
      memcpy(&four, x, sizeof(four));
      for (int i = 0; i < 4; ++i) {
        const __m256i columns = _mm256_load_si256(reinterpret_cast<const __m256i*>(factors[k]) + i);
        pairs[i] = _mm256_add_epi32(pairs[i], _mm256_madd_epi16(_mm256_set1_epi64x(four), columns));
      }
    }
    uint32_t parts[16][2], row[16];
    memcpy(parts, pairs, sizeof(parts));
    memcpy(row, tiles.data[sums][m], sizeof(row));
    for (int n = 0; n < 16; ++n) row[n] += parts[n][0] + parts[n][1];
    memcpy(tiles.data[sums][m], row, sizeof(row));
  }
}
ANYNPU_TILE void _tile_dpbssd(int sums, int a, int b) { tile_products<int8_t, int8_t>(sums, a, b); }
ANYNPU_TILE void _tile_dpbsud(int sums, int a, int b) { tile_products<int8_t, uint8_t>(sums, a, b); }

// Subnormals are zero on the way in and out.
ANYNPU_TILE float without_subnormals(float value) {
  return __builtin_fabsf(value) < 0x1p-126f ? __builtin_copysignf(0.0f, value) : value;
}
ANYNPU_TILE float float_of_bf16(const uint8_t* from) {
  uint32_t bits = 0;
  memcpy(reinterpret_cast<uint8_t*>(&bits) + 2, from, 2);
  float value;
  memcpy(&value, &bits, sizeof(value));
  return without_subnormals(value);
}

// sums[m][n] += (the sum over even k of a[m][k] * b[k / 2][2 * n]) + (that over odd k of a[m][k] * b[k / 2][2 * n + 1]).
ANYNPU_TILE void _tile_dpbf16ps(int sums, int a, int b) {
  EmulatedTiles& tiles = emulated_tiles();
  require_product(sums, a, b);
  float factors[32][16];
  for (int k = 0; k < tiles.row_bytes[a] / 2; ++k) {
    for (int n = 0; n < 16; ++n) factors[k][n] = float_of_bf16(tiles.data[b][k / 2] + 4 * n + 2 * (k % 2));
  }
  for (int m = 0; m < tiles.rows[a]; ++m) {
    float parts[2][16] = {}, row[16];
    for (int k = 0; k < tiles.row_bytes[a] / 2; ++k) {
      const float x = float_of_bf16(tiles.data[a][m] + 2 * k);
      float* part = parts[k % 2];
      for (int n = 0; n < 16; ++n) part[n] = without_subnormals(__builtin_fmaf(x, factors[k][n], part[n]));
    }
    memcpy(row, tiles.data[sums][m], sizeof(row));
    for (int n = 0; n < tiles.row_bytes[b] / 4; ++n) {
      row[n] = without_subnormals(without_subnormals(row[n]) + without_subnormals(parts[0][n] + parts[1][n]));
    }
    memcpy(tiles.data[sums][m], row, sizeof(row));
  }
}

}  // namespace
}  // namespace anynpu
