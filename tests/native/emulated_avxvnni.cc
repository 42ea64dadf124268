// SPDX-License-Identifier: Apache-2.0
// Compares the emulated AVX-VNNI intrinsics with the CPU's, bit for bit. For a CPU with AVX-VNNI.
#include "simd/emulated_avxvnni.h"

#include <cstdio>
#include <cstring>
#include <random>

namespace {

template <typename Call>
bool agree(const char* name, const __m256i (&in)[3], const Call& native, const Call& emulated) {
  const __m256i expected = native(in[0], in[1], in[2]), got = emulated(in[0], in[1], in[2]);
  if (std::memcmp(&expected, &got, sizeof(got)) == 0) return true;
  std::printf("%s differs\n", name);
  return false;
}

}  // namespace

int main() {
  using Call = __m256i (*)(__m256i, __m256i, __m256i);
  const Call words = [](__m256i a, __m256i b, __m256i c) { return ::_mm256_dpwssd_avx_epi32(a, b, c); };
  const Call bytes = [](__m256i a, __m256i b, __m256i c) { return ::_mm256_dpbusd_avx_epi32(a, b, c); };
  const Call emulated_words = anynpu::_mm256_dpwssd_avx_epi32, emulated_bytes = anynpu::_mm256_dpbusd_avx_epi32;
  std::mt19937 random(1);
  for (int round = 0; round < 1000; ++round) {
    uint32_t values[3][8];
    for (auto& vector : values) {
      for (uint32_t& value : vector) value = static_cast<uint32_t>(random());
    }
    if (round < 8) std::memset(values[1], round % 2 == 0 ? 0x80 : 0xff, sizeof(values[1]));
    if (round < 8) std::memset(values[2], round % 4 < 2 ? 0x80 : 0x7f, sizeof(values[2]));
    __m256i in[3];
    std::memcpy(in, values, sizeof(in));
    if (!agree("_mm256_dpwssd_avx_epi32", in, words, emulated_words)) return 1;
    if (!agree("_mm256_dpbusd_avx_epi32", in, bytes, emulated_bytes)) return 1;
  }
  return 0;
}
