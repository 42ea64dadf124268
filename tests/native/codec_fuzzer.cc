// SPDX-License-Identifier: Apache-2.0
// The codec under libFuzzer, see CONTRIBUTING.md. The first byte of an input chooses what the others are:
// - a payload, its checksum made right: the tiers must refuse it alike or decode it to the same values;
// - an index and a stream as a caller could hand them over;
// - values and edits: what the tiers encode must be the same bytes and decode to the values; then the edits damage it.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "anynpu.h"
#include "codec/decode.h"
#include "codec/encode.h"
#include "codec_rows.h"

namespace {

using namespace anynpu::codec;

constexpr const char* kTiers[] = {"portable", "avx2", "avx512vnni", "avx512vbmi"};

void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "%s\n", what);
  std::abort();
}

// Numbers and bytes taken from the front of an input; zeros when it is used up.
class Input {
 public:
  Input(const uint8_t* data, size_t size) : data_(data), size_(size) {}
  int64_t number(int64_t limit) {
    int64_t value = 0;
    for (int i = 0; i < 2; ++i) value = value << 8 | byte();
    return value % limit;
  }
  uint8_t byte() {
    if (size_ == 0) return 0;
    --size_;
    return *data_++;
  }
  bool empty() const { return size_ == 0; }
  size_t size() const { return size_; }
  const uint8_t* data() const { return data_; }

 private:
  const uint8_t* data_;
  size_t size_;
};

template <typename Function>
void on_each_tier(const Function& function) {
  for (const char* tier : kTiers) {
    anynpu_set_max_isa(nullptr);
    if (anynpu_isa_refusal(tier) != nullptr) continue;
    anynpu_set_max_isa(tier);
    function();
  }
  anynpu_set_max_isa(nullptr);
}

// Bytes in memory of their exact size, so that AddressSanitizer sees any read past them.
std::unique_ptr<uint8_t[]> exact(const uint8_t* data, size_t size) {
  std::unique_ptr<uint8_t[]> copy(new uint8_t[size]);
  if (size != 0) std::memcpy(copy.get(), data, size);
  return copy;
}

void decode_alike(const Geometry& geometry, int64_t block, uint8_t kind, const uint8_t* data, size_t size) {
  const size_t bytes = size / 8 * 8;
  if (bytes > 65535 * 8) return;
  const auto payload = exact(data, bytes);
  std::vector<Entry> index(static_cast<size_t>(geometry.blocks()));
  const uint32_t seed = block_seed(geometry, block, kind);
  index[static_cast<size_t>(block)] = {kernel().checksum(payload.get(), static_cast<int64_t>(bytes), seed),
                                       static_cast<uint16_t>(bytes / 8), kind, kMark};
  const std::vector<int64_t> offsets(index.size(), 0);
  const Stream stream = {payload.get(), static_cast<int64_t>(bytes), reinterpret_cast<const uint8_t*>(index.data()),
                         offsets.data(), geometry};
  const size_t values = static_cast<size_t>(block_shape(geometry, block).values());
  std::vector<uint8_t> first;
  const char* refusal = nullptr;
  on_each_tier([&] {
    std::vector<uint8_t> out(values);
    const char* result = decode_block(stream, block, out.data());
    if (first.empty()) {
      first = out;
      refusal = result;
    }
    require((result == nullptr) == (refusal == nullptr), "one tier refuses what another decodes");
    require(result != nullptr || out == first, "tiers decode to different values");
    std::vector<int8_t> weight(static_cast<size_t>(geometry.n * geometry.k));
    const char* of_rows = decode_to_rows(stream, block, weight.data());
    require((of_rows == nullptr) == (refusal == nullptr), "rows are refused, or values are");
    require(refusal != nullptr || rows_hold(weight.data(), geometry, block, out.data()), "rows hold other values");
  });
}

void decode_stream(const Geometry& geometry, Input input) {
  const size_t index_bytes = static_cast<size_t>(geometry.blocks() * kEntryBytes);
  if (input.size() < index_bytes) return;
  const auto index = exact(input.data(), index_bytes);
  const size_t bytes = input.size() - index_bytes;
  const auto data = exact(input.data() + index_bytes, bytes);
  std::vector<int64_t> offsets(static_cast<size_t>(geometry.blocks()));
  const Stream stream = {data.get(), static_cast<int64_t>(bytes), index.get(), offsets.data(), geometry};
  int64_t block = 0;
  if (find_blocks(stream, offsets.data(), &block) != nullptr) return;
  std::vector<uint8_t> out(kMaxBlockValues);
  for (block = 0; block < geometry.blocks(); ++block) decode_block(stream, block, out.data());
}

// Few bytes make a whole matrix: each is drawn from them by a mixing of its place.
std::vector<int8_t> make_values(const Geometry& geometry, Input* input) {
  uint8_t alphabet[64];
  const int64_t size = 1 + input->number(64);
  for (int64_t i = 0; i < size; ++i) alphabet[i] = input->byte();
  uint32_t state = 1 + static_cast<uint32_t>(input->number(65536));
  std::vector<int8_t> values(static_cast<size_t>(geometry.k * geometry.n));
  for (int8_t& value : values) {
    state = state * 1664525u + 1013904223u;
    const uint32_t draw = state >> 16;  // products of two draws prefer the front of the alphabet
    value = static_cast<int8_t>(alphabet[(draw & 255) * (draw >> 8) * static_cast<uint32_t>(size) >> 16]);
  }
  return values;
}

void round_trip(const Geometry& geometry, Input input) {
  const std::vector<int8_t> weight = make_values(geometry, &input);
  const Matrix matrix = {weight.data(), geometry.k, 1, geometry};
  const int64_t block = input.number(geometry.blocks());
  const BlockShape shape = block_shape(geometry, block);
  std::vector<uint8_t> payload;
  Entry entry = {};
  on_each_tier([&] {
    Encoder encoder;
    std::vector<uint8_t> written(static_cast<size_t>(shape.values()));
    const Entry other = encoder.encode_block(matrix, block, written.data());
    written.resize(8 * size_t{other.words});
    require(payload.empty() || (written == payload && std::memcmp(&other, &entry, sizeof(entry)) == 0),
            "tiers encode to different bytes");
    payload = written;
    entry = other;
  });
  std::vector<Entry> index(static_cast<size_t>(geometry.blocks()));
  index[static_cast<size_t>(block)] = entry;
  const std::vector<int64_t> offsets(index.size(), 0);
  const Stream stream = {payload.data(), static_cast<int64_t>(payload.size()),
                         reinterpret_cast<const uint8_t*>(index.data()), offsets.data(), geometry};
  std::vector<uint8_t> out(static_cast<size_t>(shape.values()));
  require(decode_block(stream, block, out.data()) == nullptr, "an encoded block is refused");
  require(rows_hold(weight.data(), geometry, block, out.data()), "a value has changed");
  while (!input.empty()) {
    const size_t place = static_cast<size_t>(input.number(65536)) % payload.size();
    payload[place] = input.byte();
  }
  decode_alike(geometry, block, entry.kind, payload.data(), payload.size());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input input(data, size);
  const uint8_t mode = input.byte() % 3;
  const Geometry geometry = {1 + input.number(300), 1 + input.number(200)};
  if (mode == 0) {
    const int64_t block = input.number(geometry.blocks());
    const uint8_t kind = input.byte() % 3;
    decode_alike(geometry, block, kind, input.data(), input.size());
  } else if (mode == 1) {
    decode_stream(geometry, input);
  } else {
    round_trip(geometry, input);
  }
  return 0;
}
