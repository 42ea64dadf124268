// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "codec/format.h"

namespace anynpu::codec {

// The matrix to compress: W[n][k] at data + n * n_stride + k * k_stride.
struct Matrix {
  const int8_t* data;
  int64_t n_stride;
  int64_t k_stride;
  Geometry geometry;
};

class Encoder {
 public:
  Encoder();
  ~Encoder();
  Encoder(const Encoder&) = delete;
  Encoder& operator=(const Encoder&) = delete;
  bool ok() const { return work_ != nullptr; }
  // Writes the payload, at most block_shape(block).values() bytes, and returns its index entry.
  Entry encode_block(const Matrix& matrix, int64_t block, uint8_t* payload);

 private:
  struct Work;
  Work* work_;
};

}  // namespace anynpu::codec
