// SPDX-License-Identifier: Apache-2.0
// Decodes mutated streams, checksums made right again, on every tier: under AddressSanitizer any over-read is an error, and
// the tiers must agree on whether a block is refused and on its values. Usage: codec_fuzz SECONDS [SEED].
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "anynpu.h"
#include "codec/decode.h"
#include "codec/encode.h"
#include "codec_rows.h"

namespace {

using namespace anynpu::codec;

struct Target {
  Geometry geometry;
  std::vector<Entry> index;
  std::vector<std::vector<uint8_t>> payloads;
};

Target make_target(std::mt19937_64& random) {
  const int64_t k = 1 + static_cast<int64_t>(random() % 600), n = 1 + static_cast<int64_t>(random() % 300);
  const double sigma = std::exp2(static_cast<double>(random() % 900) / 100.0 - 2.0);
  std::normal_distribution<double> normal(0.0, sigma);
  std::vector<int8_t> weight(static_cast<size_t>(k * n));
  for (int8_t& value : weight)
    value = static_cast<int8_t>(std::max(-128.0, std::min(127.0, std::nearbyint(normal(random)))));
  Target target = {{k, n}, {}, {}};
  Encoder encoder;
  std::vector<uint8_t> payload(kMaxBlockValues);
  const Matrix matrix = {weight.data(), k, 1, target.geometry};
  for (int64_t block = 0; block < target.geometry.blocks(); ++block) {
    target.index.push_back(encoder.encode_block(matrix, block, payload.data()));
    target.payloads.emplace_back(payload.begin(), payload.begin() + 8 * target.index.back().words);
  }
  return target;
}

void mutate(std::vector<uint8_t>& bytes, std::mt19937_64& random) {
  const uint64_t head = random() % 2 == 0 ? std::min<uint64_t>(bytes.size(), 120) : bytes.size();
  for (uint64_t i = random() % 4 + 1; i > 0; --i) bytes[random() % head] = static_cast<uint8_t>(random());
  if (random() % 8 == 0) bytes.resize((random() % (bytes.size() / 8 + 2) + 1) * 8);
}

// Whether a block that is given as nibbles is the same, or just as bad.
bool same_nibbles(const Stream& stream, int64_t block, const char* refusal, const uint8_t* values) {
  const size_t count = static_cast<size_t>(block_shape(stream.geometry, block).values());
  std::vector<uint8_t> other(count);
  Nibbles nibbles;
  const char* result = decode_to_nibbles(stream, block, other.data(), &nibbles);
  if (result != nullptr || refusal != nullptr) return (result == nullptr) == (refusal == nullptr);
  for (size_t i = 0; nibbles.classes != nullptr && i < count; ++i) {
    const int shift = i % 2 * 4;
    const int high = nibbles.high[nibbles.classes[i / 2] >> shift & 15], low = nibbles.bits[i / 2] >> shift & 15;
    if (values[i] != 16 * high + low) return false;
  }
  return nibbles.classes != nullptr || std::equal(values, values + count, other.data());
}

// Whether its rows hold a block, or it is just as bad for them.
bool same_rows(const Stream& stream, int64_t block, const char* refusal, const uint8_t* values) {
  std::vector<int8_t> weight(static_cast<size_t>(stream.geometry.n * stream.geometry.k));
  const char* result = decode_to_rows(stream, block, weight.data());
  if (result != nullptr || refusal != nullptr) return (result == nullptr) == (refusal == nullptr);
  return rows_hold(weight.data(), stream.geometry, block, values);
}

// One block in memory of its exact size, as the only block after `block` empty places of the index.
const char* decode(const Target& target, int64_t block, const Entry& entry, const std::vector<uint8_t>& bytes,
                   uint8_t* out) {
  std::vector<Entry> index = target.index;
  index[static_cast<size_t>(block)] = entry;
  std::unique_ptr<uint8_t[]> exact(new uint8_t[bytes.size()]);
  std::memcpy(exact.get(), bytes.data(), bytes.size());
  const std::vector<int64_t> offsets(index.size(), 0);
  const Stream stream = {exact.get(), static_cast<int64_t>(bytes.size()),
                         reinterpret_cast<const uint8_t*>(index.data()), offsets.data(), target.geometry};
  const char* const refusal = decode_block(stream, block, out);
  if (!same_nibbles(stream, block, refusal, out) || !same_rows(stream, block, refusal, out)) {
    std::puts("nibbles or rows differ");
    std::exit(1);
  }
  return refusal;
}

bool agree(const Target& target, int64_t block, const Entry& entry, const std::vector<uint8_t>& bytes, long* accepted) {
  const size_t values = static_cast<size_t>(block_shape(target.geometry, block).values());
  std::vector<uint8_t> first(values), other(values);
  const char* tiers[] = {"portable", "avx2", "avx512vnni", "avx512vbmi"};
  const char* refusal = nullptr;
  for (const char* tier : tiers) {
    anynpu_set_max_isa(nullptr);
    if (anynpu_isa_refusal(tier) != nullptr) continue;
    anynpu_set_max_isa(tier);
    std::vector<uint8_t>& out = tier == tiers[0] ? first : other;
    const char* result = decode(target, block, entry, bytes, out.data());
    if (tier == tiers[0]) {
      refusal = result;
    } else if ((result == nullptr) != (refusal == nullptr) || (result == nullptr && first != other)) {
      return false;
    }
  }
  *accepted += refusal == nullptr;
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  const int seconds = argc > 1 ? std::atoi(argv[1]) : 10;
  std::mt19937_64 random(argc > 2 ? static_cast<uint64_t>(std::atoll(argv[2])) : 1);
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
  long runs = 0, accepted = 0;
  while (std::chrono::steady_clock::now() < end) {
    const Target target = make_target(random);
    for (int i = 0; i < 200; ++i) {
      const int64_t block = static_cast<int64_t>(random() % target.index.size());
      std::vector<uint8_t> bytes = target.payloads[static_cast<size_t>(block)];
      mutate(bytes, random);
      Entry entry = target.index[static_cast<size_t>(block)];
      if (random() % 16 == 0) entry.kind = static_cast<uint8_t>(random() % 4);
      entry.words = static_cast<uint16_t>(bytes.size() / 8 + (random() % 16 == 0));
      const uint32_t seed = block_seed(target.geometry, block, entry.kind);
      entry.checksum = kernel().checksum(bytes.data(), static_cast<int64_t>(bytes.size()), seed);
      if (!agree(target, block, entry, bytes, &accepted)) {
        std::printf("tiers differ: run %ld, k %lld, n %lld, block %lld\n", runs,
                    static_cast<long long>(target.geometry.k), static_cast<long long>(target.geometry.n),
                    static_cast<long long>(block));
        return 1;
      }
      ++runs;
    }
  }
  std::printf("%ld mutated blocks, %ld decoded, the others refused\n", runs, accepted);
  return runs == 0;
}
