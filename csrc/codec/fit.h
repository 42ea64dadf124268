// SPDX-License-Identifier: Apache-2.0
// What the encoder chooses from counts: which codes share a class, how many tables and levels pay.
#pragma once

#include "codec/format.h"

namespace anynpu::codec {

using Histogram = uint32_t[256];
using ClassCounts = uint32_t[kClasses];

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
  uint8_t class_of[256];
  ClassCounts counts;
};

// One table for the block, or one for each 16 columns where their spreads differ enough. Counts its classes.
Coding choose_coding(const Histogram (&groups)[kColumnGroups], const Histogram& total, ClassCounts& counts);

// Ranges of the ranks of a further level. Counts their classes.
Ranges fit_ranks(const Histogram& by_rank, ClassCounts& counts);

// Weights of the classes for rank_map: -8 log2 of their share.
void choose_order(const Histogram& pairs, uint8_t (&order)[kClasses]);

// Boxes of bytes of two class nibbles.
Boxes cut_boxes(const Histogram& pairs);

// Bits that boxes lose to an ideal code of `count` such bytes.
int64_t lost_bits(const Boxes& boxes, const Histogram& pairs, int64_t count);

// Whether an ideal code of the class nibbles below `level` would save enough of the bits that there are.
bool worth_coding(int level, const ClassCounts& counts, int64_t bits);

}  // namespace anynpu::codec
