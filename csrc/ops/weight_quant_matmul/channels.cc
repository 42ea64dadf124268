// SPDX-License-Identifier: Apache-2.0
#include "ops/weight_quant_matmul/channels.h"

#include <algorithm>
#include <cstring>

#include "core/quant_param.h"

namespace anynpu {

void load_channels(const GemmKernel& kernel, const Channels& channels, int64_t group, int64_t column, int64_t count,
                   float* to) {
  const int64_t first = group * channels.group_stride + column * channels.column_stride;
  const uint8_t* from = static_cast<const uint8_t*>(channels.data) + first * dtype_bits(channels.dtype) / 8;
  if (channels.dtype == ANYNPU_INT64) {
    for (int64_t i = 0; i < count; ++i) std::memcpy(to + i, from + i * channels.column_stride * 8, sizeof(float));
  } else if (channels.column_stride == 0) {
    kernel.load_floats(from, channels.dtype, 1, 1, to);
    std::fill(to + 1, to + count, to[0]);
  } else {
    kernel.load_floats(from, channels.dtype, channels.column_stride, count, to);
  }
}

void fetch_channels(const Channels& channels, int64_t group, int64_t column, int64_t count) {
  if (channels.group_stride == 0 || channels.column_stride != 1) return;
  const int64_t bytes = dtype_bits(channels.dtype) / 8;
  const uint8_t* from = static_cast<const uint8_t*>(channels.data) + (group * channels.group_stride + column) * bytes;
  for (int64_t line = 0; line < count * bytes; line += 64) __builtin_prefetch(from + line, 0, 2);
}

void load_quantisation(const WeightQuantProblem& problem, float* scale, float* offset) {
  const Channels &scales = problem.quant_scale, &offsets = problem.quant_offset;
  for (int64_t column = 0; column < problem.n; ++column) {
    const int64_t at = column * scales.column_stride;
    int64_t word;
    if (scales.dtype == ANYNPU_INT64) {
      word = static_cast<const int64_t*>(scales.data)[at];
    } else {
      const float* added = static_cast<const float*>(offsets.data);
      word = encode_quant_param(static_cast<const float*>(scales.data)[at],
                                added == nullptr ? 0.0f : added[column * offsets.column_stride], false);
    }
    const QuantParam param = decode_quant_param(word);
    scale[column] = param.scale;
    offset[column] = param.offset;
  }
}

}  // namespace anynpu
