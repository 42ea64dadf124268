// SPDX-License-Identifier: Apache-2.0
// What the encoder chooses from counts: which codes share a class, how many tables and levels pay.
#pragma once

#include "codec/format.h"

namespace anynpu::codec {

using Histogram = uint32_t[256];
using ClassCounts = uint32_t[kClasses];

// How often codes occur, or a sample of it: those below `first` and from `end` on do not, nor, when the counts are
// `complete`, those counted zero times.
struct Counts {
  Histogram of;
  int first, end;
  bool complete;
};

constexpr int kColumnGroups = 8;  // of 16 columns, counted apart
constexpr int kGroupsLog2 = 3;

// Ranges of codes, ascending: range r holds the codes from first[r] to below the first of the range after it.
struct Ranges {
  Table table;  // by class
  uint8_t first[kClasses];
  uint8_t class_of[kClasses];
  int count;
};

// Level 1 of a block.
struct Coding {
  bool folded;
  int tables_log2;
  Ranges tables[kColumnGroups];
};

// Classes of class nibbles, two to a byte.
struct Boxes {
  Table table;
  ClassCounts counts;
  int64_t bits;  // of the level
};

// One table for the block, or one for each 16 columns where their spreads differ enough. Counts its classes.
Coding choose_coding(const Counts (&groups)[kColumnGroups], const Counts& total, ClassCounts& counts);

// Whether a code is missing between common ones: then others that a sample lacks may never occur either.
bool has_gaps(const Counts& sample);

// Ranges of the ranks of a further level. Counts their classes.
Ranges fit_ranks(const Counts& by_rank, ClassCounts& counts);

// Weights of the classes for rank_map: -8 log2 of their share.
void choose_order(const Histogram& pairs, uint8_t (&order)[kClasses]);

// Boxes of bytes of two class nibbles.
Boxes cut_boxes(const Histogram& pairs);

// The class of each byte.
void map_boxes(const Table& boxes, uint8_t (&class_of)[256]);

// Bits of an ideal code of the source of these bytes, of which one in 2^part_log2 was counted: such a sample looks more
// orderly than its source is, by half a nat for each value but one (Miller and Madow).
int64_t ideal_bits(const Histogram& pairs, int part_log2);

// Whether an ideal code of the class nibbles below `level` would save enough of the bits that there are.
bool worth_coding(int level, const ClassCounts& counts, int64_t bits);

}  // namespace anynpu::codec
