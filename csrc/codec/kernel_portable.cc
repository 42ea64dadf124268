// SPDX-License-Identifier: Apache-2.0
#include "codec/checksum.inc"
#include "codec/sort_pairs.inc"

namespace anynpu::codec {
namespace {

uint8_t unfold(uint8_t code) { return static_cast<uint8_t>(code >> 1 ^ ((code & 1) != 0 ? 0x7f : 0x80)); }
uint8_t fold(uint8_t value) { return static_cast<uint8_t>(value >= 128 ? 2 * (value - 128) : 255 - 2 * value); }

int bit_count(uint8_t mask) { return __builtin_popcount(mask); }

// The lowest bits of `bits` where a mask has ones.
uint8_t spread(uint64_t bits, uint8_t mask) {
  const uint8_t low = mask & 15, high = mask >> 4;
  return static_cast<uint8_t>((bits & low) | (bits >> bit_count(low) & high) << 4);
}

// The inverse.
uint64_t gather(uint8_t code, uint8_t mask) {
  const uint8_t low = mask & 15, high = mask >> 4;
  return static_cast<uint64_t>((code & low) | (code >> 4 & high) << bit_count(low));
}

// Eight values, a byte each.
uint64_t expand_group(const uint8_t* nibbles, const LaneTable& table, int64_t lane, const uint8_t* extras,
                      uint64_t* position, bool folded) {
  uint64_t window, values = 0;
  int used = 0;
  memcpy(&window, extras + *position / 8, sizeof(window));
  window >>= *position % 8;
  for (int i = 0; i < 8; ++i) {
    const int64_t entry = lane + (nibbles[i / 2] >> (i % 2 * 4) & 15);
    const uint8_t code = static_cast<uint8_t>(table.base[entry] + spread(window >> used, table.mask[entry]));
    used += bit_count(table.mask[entry]);
    values |= uint64_t{folded ? unfold(code) : code} << (8 * i);
  }
  *position += static_cast<uint64_t>(used);
  return values;
}

void permute(const uint8_t* map, int64_t, int64_t count, const uint8_t* from, uint8_t* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = map[from[i]];
}

int32_t expand(const uint8_t* nibbles, int64_t count, const LaneTable* tables, bool one_table, Codes codes,
               const RankMap* ranks, BitSource* extras, uint8_t* out) {
  uint64_t position = static_cast<uint64_t>(extras->position);
  const uint64_t end = 8 * static_cast<uint64_t>(extras->bytes);
  for (int64_t piece = 0; piece < count / kPiece; ++piece, nibbles += kPiece / 2, out += kPiece) {
    if (position > end) return 0;
    const LaneTable& table = tables[one_table ? 0 : piece % kPanelPieces];
    for (int64_t i = 0; i < kPiece; i += 8) {
      const uint64_t values =
          expand_group(nibbles + i / 2, table, i / 16 * 16, extras->data, &position, codes == Codes::folded);
      memcpy(out + i, &values, sizeof(values));
    }
    if (ranks != nullptr) permute(ranks->nibbles, ranks->count, kPiece, out, out);
  }
  extras->position = static_cast<int64_t>(position);
  return position <= end;
}

// At most 56 bits.
void append(uint64_t bits, int count, BitSink* sink) {
  sink->pending |= bits << sink->filled;
  sink->filled += count;
  memcpy(sink->to, &sink->pending, sizeof(sink->pending));
  sink->to += sink->filled / 8;
  sink->pending >>= sink->filled / 8 * 8;
  sink->filled %= 8;
}

void classify(const uint8_t* values, int64_t count, const CutTable* tables, bool one_table, bool folded, uint8_t* codes,
              uint8_t* classes) {
  for (int64_t piece = 0; piece < count / kPiece; ++piece, values += kPiece, codes += kPiece, classes += kPiece) {
    const CutTable& table = tables[one_table ? 0 : piece % kPanelPieces];
    for (int i = 0; i < kPiece; ++i) codes[i] = folded ? fold(values[i]) : values[i];
    for (int i = 0; i < kPiece; ++i) {
      const int lane = i / 16 * 16, code = codes[i] - 128;
      int node = 1;
      for (int step = 0; step < kCutSteps; ++step) node = 2 * node + (code > table.bound[lane + node]);
      classes[i] = table.class_of[lane + node - kClasses];
    }
  }
}

void pack(const uint8_t* codes, const uint8_t* classes, int64_t count, const LaneTable* tables, bool one_table,
          uint8_t* nibbles, BitSink* sink) {
  for (int64_t piece = 0; piece < count / kPiece; ++piece, codes += kPiece, classes += kPiece, nibbles += kPiece / 2) {
    const LaneTable& table = tables[one_table ? 0 : piece % kPanelPieces];
    for (int i = 0; i < kPiece; i += 8) {
      uint64_t bits = 0;
      int used = 0;
      for (int j = i; j < i + 8; ++j) {
        const int entry = j / 16 * 16 + classes[j];
        bits |= gather(static_cast<uint8_t>(codes[j] - table.base[entry]), table.mask[entry]) << used;
        used += bit_count(table.mask[entry]);
      }
      append(bits, used, sink);
    }
    for (int i = 0; i < kPiece / 2; ++i) nibbles[i] = static_cast<uint8_t>(classes[2 * i] | classes[2 * i + 1] << 4);
  }
}

void add_range(const RangeCosts& from, int32_t none, const int32_t* ends, const int32_t* extra, int32_t count,
               RangeCosts* costs) {
  int32_t less[kClasses];
  less[0] = none;
  for (int i = 1; i < kClasses; ++i) less[i] = from.of[i - 1];
  for (int way = 0; way < count; ++way) {
    int32_t* to = costs[ends[way]].of;
    for (int i = 0; i < kClasses; ++i) to[i] = less[i] + extra[way] < to[i] ? less[i] + extra[way] : to[i];
  }
}

constexpr uint32_t kBias = 0x80808080u;

void tile(const int8_t* rows, int64_t stride, int64_t columns, int64_t steps, uint8_t* panel) {
  for (int64_t step = 0; step < steps; ++step) {
    for (int64_t column = 0; column < columns; ++column, panel += 4) {
      uint32_t word;
      memcpy(&word, rows + column * stride + 4 * step, sizeof(word));
      word ^= kBias;
      memcpy(panel, &word, sizeof(word));
    }
    panel += 4 * (kPanelColumns - columns);
  }
}

void untile(const uint8_t* panel, int64_t columns, int64_t steps, int8_t* rows, int64_t stride, bool) {
  for (int64_t step = 0; step < steps; ++step) {
    for (int64_t column = 0; column < columns; ++column, panel += 4) {
      uint32_t word;
      memcpy(&word, panel, sizeof(word));
      word ^= kBias;
      memcpy(rows + column * stride + 4 * step, &word, sizeof(word));
    }
    panel += 4 * (kPanelColumns - columns);
  }
}

void fence() {}

void extent(const uint8_t* pieces, int64_t count, int64_t stride, uint8_t* least, uint8_t* largest) {
  *least = 255;
  *largest = 0;
  for (int64_t i = 0; i < count; ++i, pieces += stride) {
    for (int64_t j = 0; j < kPiece; ++j) {
      *least = pieces[j] < *least ? pieces[j] : *least;
      *largest = pieces[j] > *largest ? pieces[j] : *largest;
    }
  }
}

void mix_pieces(const uint8_t* bytes, int64_t pieces, uint32_t* lanes) {
  for (int64_t piece = 0; piece < pieces; ++piece, bytes += 4 * kHashLanes) {
    uint32_t words[kHashLanes];
    memcpy(words, bytes, sizeof(words));
    for (int lane = 0; lane < kHashLanes; ++lane) lanes[lane] = mix(lanes[lane], words[lane]);
  }
}

}  // namespace

extern const Kernel codec_portable;
const Kernel codec_portable = {Isa::portable, expand, classify, pack,  permute, sort_pairs,
                               add_range,     tile,   untile,   fence, extent,  checksum};

}  // namespace anynpu::codec
