// SPDX-License-Identifier: Apache-2.0
// Compares the emulated AVX-512 intrinsics with the CPU's, bit for bit; a NaN equals any other. For a CPU with AVX-512.
#include "simd/emulated_avx512.h"

#include <cstdio>
#include <random>
#include <string>
#include <vector>

struct Input {
  alignas(64) uint8_t bytes[3][64];
  float floats[3][16];
  uint64_t mask;
};

namespace anynpu {
#include "avx512_calls.inc"
}
namespace native {
#include "avx512_calls.inc"
}

namespace {

struct Outcome {
  std::string call;
  std::vector<uint8_t> bytes;
  bool floats;
};

template <typename T>
constexpr bool is_float(const T&) {
  return std::is_same_v<T, float> || std::is_same_v<T, __m256> || std::is_same_v<T, __m512> ||
         std::is_same_v<T, anynpu::__m512>;
}

template <typename T>
Outcome outcome_of(const char* call, const T& result) {
  if constexpr (std::is_integral_v<T>) {  // masks have the width of their vector, or 64 bits when emulated
    const uint64_t mask = sizeof(T) == 4 ? static_cast<uint32_t>(result) : static_cast<uint64_t>(result);
    const uint8_t* bytes = reinterpret_cast<const uint8_t*>(&mask);
    return {call, {bytes, bytes + sizeof(mask)}, false};
  } else {
    const uint8_t* bytes = reinterpret_cast<const uint8_t*>(&result);
    return {call, {bytes, bytes + sizeof(T)}, is_float(result)};
  }
}

bool same(const Outcome& a, const Outcome& b) {
  if (a.bytes.size() != b.bytes.size()) return false;
  if (!a.floats) return a.bytes == b.bytes;
  for (size_t i = 0; i < a.bytes.size(); i += sizeof(float)) {
    float x, y;
    memcpy(&x, &a.bytes[i], sizeof(x));
    memcpy(&y, &b.bytes[i], sizeof(y));
    if (memcmp(&x, &y, sizeof(x)) != 0 && (x == x || y == y)) return false;
  }
  return true;
}

Input random_input(std::mt19937_64& random, int round) {
  Input in;
  for (auto& row : in.bytes) {
    for (uint8_t& byte : row) byte = static_cast<uint8_t>(random());
  }
  std::normal_distribution<float> normal(0.0f, 100.0f);
  for (auto& row : in.floats) {
    for (float& value : row) value = normal(random);
  }
  // Every other round has floats of any bits: infinities, NaN, subnormals.
  if (round % 2 != 0) memcpy(in.floats, in.bytes, sizeof(in.floats));
  in.mask = random();
  return in;
}

}  // namespace

int main() {
  std::mt19937_64 random(1);
  size_t calls = 0;
  for (int round = 0; round < 1000; ++round) {
    const Input in = random_input(random, round);
    std::vector<Outcome> emulated, expected;
    anynpu::call_all(in, [&](const char* call, const auto& result) { emulated.push_back(outcome_of(call, result)); });
    native::call_all(in, [&](const char* call, const auto& result) { expected.push_back(outcome_of(call, result)); });
    for (calls = 0; calls < expected.size(); ++calls) {
      if (same(emulated[calls], expected[calls])) continue;
      std::printf("%s differs in round %d\n", expected[calls].call.c_str(), round);
      return 1;
    }
  }
  std::printf("%zu calls agree\n", calls);
  return 0;
}
