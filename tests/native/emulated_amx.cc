// SPDX-License-Identifier: Apache-2.0
// Compares the emulated AMX intrinsics with the CPU's, bit for bit. For a CPU with AMX; exits with 2 where the operating
// system does not let the process use it.
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

constexpr int64_t kRowBytes = 80;  // between rows, more than a tile has

struct Input {
  alignas(64) uint8_t shapes[64];
  uint8_t bytes[3][16 * kRowBytes];
  uint16_t bf16[2][16 * kRowBytes / 2];
  float floats[16 * kRowBytes / 4];
};

namespace native {
#include "amx_calls.inc"
}

#include "simd/emulated_amx.h"

namespace anynpu {
#include "amx_calls.inc"
}

namespace {

// Tiles 0, 1 and 2: sums [m][n], int8 [m][4 k] and [k][n] of four bytes. In every other round products of bfloat16 are
// about the least normal float32.
Input random_input(std::mt19937_64& random, int round) {
  Input in = {};
  const auto below_17 = [&] { return static_cast<uint8_t>(1 + random() % 16); };
  const uint8_t m = below_17(), k = below_17(), n = below_17();
  const uint8_t rows[] = {m, m, k};
  const uint16_t row_bytes[] = {static_cast<uint16_t>(4 * n), static_cast<uint16_t>(4 * k),
                                static_cast<uint16_t>(4 * n)};
  in.shapes[0] = 1;
  std::memcpy(in.shapes + 16, row_bytes, sizeof(row_bytes));
  std::memcpy(in.shapes + 48, rows, sizeof(rows));
  for (auto& tile : in.bytes) {
    for (uint8_t& byte : tile) byte = static_cast<uint8_t>(random());
  }
  std::normal_distribution<float> normal(0.0f, round % 2 == 0 ? 1.0f : 0x1p-63f);
  for (auto& tile : in.bf16) {
    for (uint16_t& value : tile) {
      const float single = normal(random);
      std::memcpy(&value, reinterpret_cast<const char*>(&single) + 2, sizeof(value));
    }
  }
  for (float& value : in.floats) value = normal(random) * normal(random);
  return in;
}

struct Outcome {
  std::string call;
  std::vector<uint8_t> bytes;
};

}  // namespace

int main() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) != 0) return 2;
  std::mt19937_64 random(1);
  size_t calls = 0;
  for (int round = 0; round < 1000; ++round) {
    const Input in = random_input(random, round);
    std::vector<Outcome> expected, emulated;
    const auto into = [](std::vector<Outcome>& outcomes) {
      return
          [&](const char* call, const auto& memory) { outcomes.push_back({call, {memory, memory + sizeof(memory)}}); };
    };
    native::call_all(in, into(expected));
    anynpu::call_all(in, into(emulated));
    for (calls = 0; calls < expected.size(); ++calls) {
      if (expected[calls].bytes == emulated[calls].bytes) continue;
      std::printf("%s differs in round %d\n", expected[calls].call.c_str(), round);
      return 1;
    }
  }
  std::printf("%zu calls agree\n", calls);
  return 0;
}
