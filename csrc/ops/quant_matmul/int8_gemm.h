// SPDX-License-Identifier: Apache-2.0
// The driver of the int8 matrix products: packs x, then each task owns a block of columns and a part of the rows, and asks
// for the weights one span of k after the other.
#pragma once

#include "codec/format.h"
#include "gemm/gemm.h"
#include "ops/quant_matmul/int8_problem.h"

namespace anynpu {

class PanelSource {
 public:
  virtual ~PanelSource() = default;
  // Writes the canonical panels of a part: whole spans of k, at most 128 columns, or a multiple of 32 k, at most deep(), and
  // at most wide() columns. False when the weight is damaged.
  virtual bool fill(const WeightPart& part, uint8_t* panels) const = 0;
  // The same, but where it can it gives the panels as nibbles, for which it may use the memory of `panels`.
  virtual bool fill_nibbles(const WeightPart& part, uint8_t* panels, codec::Nibbles* nibbles) const {
    nibbles->classes = nullptr;
    return fill(part, panels);
  }
  // Columns of a part where few rows of x leave it to the memory, a multiple of 128.
  virtual int64_t wide() const { return 128; }
  // k of a part.
  virtual int64_t deep() const { return kSpan; }
  // The weight as it lies in memory, or null.
  virtual const WeightSource* plain() const { return nullptr; }
};

// ANYNPU_BAD_VALUE without a sentence when the weight is damaged; y may then be partly written.
int32_t run_int8_gemm(const char* op, const Int8Problem& problem, const PanelSource& weight);

}  // namespace anynpu
