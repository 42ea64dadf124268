// SPDX-License-Identifier: Apache-2.0
// Reading a compressed matrix: any bytes are safe to decode, damage is an error.
#pragma once

#include "codec/format.h"
#include "codec/kernel.h"

namespace anynpu::codec {

struct Stream {
  const uint8_t* data;
  int64_t bytes;
  const uint8_t* index;    // blocks() entries
  const int64_t* offsets;  // blocks() byte offsets, written by find_blocks
  Geometry geometry;
};

BlockShape block_shape(const Geometry& geometry, int64_t block);
Entry read_entry(const uint8_t* index, int64_t block);
uint32_t block_seed(const Geometry& geometry, int64_t block, uint8_t kind);
LaneTable lane_table(const Table* const (&tables)[4]);

// Which of 2^tables_log2 tables serves 4 of the 128 columns of a block.
inline int64_t table_of_lane(int64_t lane, int tables_log2) { return lane >> (kMaxTablesLog2 - tables_log2); }

// The lowest bits of a number of bits.
inline uint8_t mask_of_bits(int bits) { return static_cast<uint8_t>((1 << bits) - 1); }

// Ranks have no gaps, so that the masks alone say where a class begins. Returns how many ranks there are.
int64_t set_rank_bases(Table* table);

// rank -> byte of two class nibbles, by ascending sum of the weights of both, then by the byte. False for a bad weight.
bool rank_map(const uint8_t* order, uint8_t* map);

// Checks every index entry and writes the offset of every block. Null, or what is wrong; *block then says where.
const char* find_blocks(const Stream& stream, int64_t* offsets, int64_t* block);

// Writes block_shape(block).values() bytes, value + 128. Null, or what is wrong with the block.
const char* decode_block(const Stream& stream, int64_t block, uint8_t* values);

// The same, but a block that can be given as nibbles is, and `values` then holds what they point to; else they are null.
const char* decode_to_nibbles(const Stream& stream, int64_t block, uint8_t* values, Nibbles* nibbles);

// To the rows of a weight (n, k). Where something is wrong a part of the block may have been written.
const char* decode_to_rows(const Stream& stream, int64_t block, int8_t* weight);

}  // namespace anynpu::codec
