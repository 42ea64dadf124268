// SPDX-License-Identifier: Apache-2.0
#include "codec/checksum.inc"

namespace anynpu::codec {
namespace {

uint8_t unfold(uint8_t code) { return static_cast<uint8_t>(code >> 1 ^ ((code & 1) != 0 ? 0x7f : 0x80)); }

// Eight values, a byte each.
uint64_t expand_group(const uint8_t* nibbles, const LaneTable& table, int64_t lane, const uint8_t* extras,
                      uint64_t* position, bool folded) {
  uint64_t window, values = 0, used = 0;
  memcpy(&window, extras + *position / 8, sizeof(window));
  window >>= *position % 8;
  for (int i = 0; i < 8; ++i) {
    const int64_t entry = lane + (nibbles[i / 2] >> (i % 2 * 4) & 15);
    const uint8_t code = static_cast<uint8_t>(table.base[entry] + (window >> used & table.mask[entry]));
    used += table.bits[entry];
    values |= uint64_t{folded ? unfold(code) : code} << (8 * i);
  }
  *position += used;
  return values;
}

int32_t expand(const uint8_t* nibbles, int64_t count, const LaneTable* tables, int64_t period, bool folded,
               BitSource* extras, uint8_t* out) {
  uint64_t position = static_cast<uint64_t>(extras->position);
  const uint64_t end = 8 * static_cast<uint64_t>(extras->bytes);
  for (int64_t piece = 0; piece < count / kPiece; ++piece, nibbles += kPiece / 2, out += kPiece) {
    if (position > end) return 0;
    const LaneTable& table = tables[piece & (period - 1)];
    for (int64_t i = 0; i < kPiece; i += 8) {
      const uint64_t values = expand_group(nibbles + i / 2, table, i / 16 * 16, extras->data, &position, folded);
      memcpy(out + i, &values, sizeof(values));
    }
  }
  extras->position = static_cast<int64_t>(position);
  return position <= end;
}

void permute(const uint8_t* map, int64_t count, uint8_t* bytes) {
  for (int64_t i = 0; i < count; ++i) bytes[i] = map[bytes[i]];
}

}  // namespace

extern const Kernel codec_portable;
const Kernel codec_portable = {Isa::portable, expand, permute, checksum};

}  // namespace anynpu::codec
