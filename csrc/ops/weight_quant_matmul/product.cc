// SPDX-License-Identifier: Apache-2.0
#include "ops/weight_quant_matmul/product.h"

#include <algorithm>

#include "core/integer.h"
#include "ops/weight_quant_matmul/channels.h"

namespace anynpu {
namespace {

constexpr int64_t kTilesAtHand = 16;  // of rows of x in float32, which stay in the second cache while columns pass by

bool is_plain(const Channels& channels) { return channels.dtype == ANYNPU_FLOAT32 && channels.column_stride == 1; }

// Rows of float32.
bool has_plain_scales(const WeightQuantProblem& problem) {
  if (!is_plain(problem.scale)) return false;
  return !problem.has_offset || (is_plain(problem.offset) && problem.offset.group_stride == problem.scale.group_stride);
}

}  // namespace

void WeightQuantProduct::run(int64_t first, int64_t count, int32_t* fallback) const {
  const RowPacker packer(problem_, plan_, storage_, kernel_);
  if (plan_.scheme == Scheme::f32) {
    for (int64_t row = 0; row < count; ++row) storage_.row_of[row] = first + row;
    return multiply(packer.pack_f32(count, storage_.packed));
  }
  const PackedX x = packer.pack(first, count);
  int64_t exceptions = 0;
  for (int64_t row = 0; row < count; ++row) {
    if (storage_.wants_f32[row]) storage_.row_of[exceptions++] = first + row;
  }
  if (exceptions < count) multiply(x);
  if (exceptions > 0) multiply(packer.pack_f32(exceptions, fallback));
}

bool WeightQuantProduct::streams(const PackedX& x) const { return plan_.stream && x.scheme == plan_.scheme; }

void WeightQuantProduct::multiply(const PackedX& x) const {
  const int64_t block = streams(x) ? plan_.stream_block : plan_.column_block;
  const int64_t column_tasks = ceil_divide(problem_.n, block);
  const int64_t part = part_rows(plan_, x.rows);
  const int64_t tasks = column_tasks * ceil_divide(x.rows, part);
  const int64_t own = tasks * share_ / plan_.shares, own_end = tasks * (share_ + 1) / plan_.shares;
  if (streams(x)) fetch_scales(own % column_tasks * block, block);
  const int64_t count = own_end - own;
  parallel_tasks(std::min(plan_.threads, count), count, [&](int64_t index, int64_t thread) {
    const int64_t task = own + index, column = task % column_tasks * block, row = task / column_tasks * part;
    multiply_block(x, row, std::min(part, x.rows - row), column, std::min(block, problem_.n - column),
                   storage_.threads[thread]);
  });
}

void WeightQuantProduct::multiply_block(const PackedX& x, int64_t row, int64_t rows, int64_t column, int64_t columns,
                                        const ThreadScratch& scratch) const {
  std::fill(scratch.c, scratch.c + rows * plan_.column_block, 0.0f);
  if (streams(x)) {
    add_streams(x, row, rows, column, columns, scratch);
  } else if (plan_.direct && x.scheme == plan_.scheme) {
    add_direct(x, column, columns, scratch);
  } else if (x.scheme == Scheme::f32) {
    add_f32(x, row, rows, column, columns, scratch);
  } else {
    add_panels(x, row, rows, column, columns, scratch);
  }
  for (int64_t each = 0; each < rows; ++each) {
    write_row(x, row + each, column, columns, scratch.c + each * plan_.column_block);
  }
}

void WeightQuantProduct::add_streams(const PackedX& x, int64_t row, int64_t rows, int64_t column, int64_t columns,
                                     const ThreadScratch& scratch) const {
  const auto stream = x.scheme == Scheme::f32     ? kernel_.stream_f32
                      : x.scheme == Scheme::pairs ? kernel_.pairs.stream
                                                  : kernel_.stream_digits[x.digits];
  StreamProduct product;
  product.bits = weight_.bits;
  product.all_rows = x.rows;
  product.row = row;
  product.rows = rows;
  product.tile_rows = plan_.tile_rows;
  product.c_stride = plan_.column_block;
  product.rests = x.digits < plan_.digits;
  product.strip_bytes = ceil_divide(problem_.k, 4) * weight_.bits * 16;
  const auto next = [&](int64_t first) {
    return span_from(storage_.blocks, plan_.block_count, first, plan_.stream_span);
  };
  for (BlockSpan span = next(0); span.count > 0; span = next(span.last)) {
    const SpanScales scales = stream_scales(span, column, columns, scratch);
    product.k_blocks = storage_.blocks + span.first;
    product.block_count = span.last - span.first;
    product.x = x.data + span.k / plan_.step_k * x.rows * x.digits;
    product.blocks = storage_.digit_blocks + span.first * x.rows;
    product.channel_stride = scales.stride;
    for (int64_t first = 0; first < columns; first += kernel_.stream_strips * kStreamColumns) {
      product.strips = std::min(kernel_.stream_strips, ceil_divide(columns - first, kStreamColumns));
      product.cells =
          weight_.data + (column + first) / kStreamColumns * product.strip_bytes + span.k / 4 * weight_.bits * 16;
      product.scale = scales.scale + first;
      product.offset = scales.offset == nullptr ? nullptr : scales.offset + first;
      product.c = scratch.c + first;
      const int64_t width = product.strips * kStreamColumns, next_column = column + first + plan_.stream_block;
      product.next_cells = product.cells + plan_.stream_block / kStreamColumns * product.strip_bytes;
      product.next_scale = ahead_of(problem_.scale, span, next_column, width);
      product.next_offset = ahead_of(problem_.offset, span, next_column, width);
      stream(product);
    }
  }
}

// Those of groups that are blocks stay where they lie if a kernel can read whole strips of them there.
SpanScales WeightQuantProduct::stream_scales(const BlockSpan& span, int64_t column, int64_t columns,
                                             const ThreadScratch& scratch) const {
  if (problem_.group <= kSpan && columns % kStreamColumns == 0 && has_plain_scales(problem_)) {
    const int64_t first = span.first * problem_.scale.group_stride + column;
    return {static_cast<const float*>(problem_.scale.data) + first,
            problem_.has_offset ? static_cast<const float*>(problem_.offset.data) + first : nullptr,
            problem_.scale.group_stride};
  }
  load_scales(span, column, columns, scratch);
  return {scratch.scale, problem_.has_offset ? scratch.offset : nullptr, plan_.column_block};
}

// What no earlier task has fetched.
void WeightQuantProduct::fetch_scales(int64_t column, int64_t columns) const {
  columns = std::min(columns, problem_.n - column);
  for (int64_t group = 0; group < ceil_divide(problem_.k, problem_.group); ++group) {
    fetch_channels(problem_.scale, group, column, columns);
    if (problem_.has_offset) fetch_channels(problem_.offset, group, column, columns);
  }
}

// Those of other columns, a group for each block.
Ahead WeightQuantProduct::ahead_of(const Channels& channels, const BlockSpan& span, int64_t column,
                                   int64_t columns) const {
  if (channels.data == nullptr || channels.column_stride != 1 || problem_.group > kSpan || column >= problem_.n)
    return {};
  const int64_t bytes = dtype_bits(channels.dtype) / 8;
  const int64_t first = span.first * channels.group_stride + column;
  return {static_cast<const uint8_t*>(channels.data) + first * bytes, channels.group_stride * bytes, 64,
          ceil_divide(std::min(columns, problem_.n - column) * bytes, 64)};
}

void WeightQuantProduct::add_direct(const PackedX& x, int64_t column, int64_t columns,
                                    const ThreadScratch& scratch) const {
  const auto direct = x.scheme == Scheme::f32     ? kernel_.direct_f32
                      : x.scheme == Scheme::pairs ? kernel_.pairs.direct
                                                  : kernel_.direct_digits[x.digits];
  DirectProduct product;
  product.weight = &weight_;
  product.scale = scratch.scale;
  product.offset = problem_.has_offset ? scratch.offset : nullptr;
  product.sums = scratch.sums;
  product.c = scratch.c;
  product.rows = x.rows;
  product.c_stride = plan_.column_block;
  for (int64_t block = 0; block < plan_.block_count; ++block) {
    const KBlock& k = storage_.blocks[block];
    load_scales(block, 0, column, columns, scratch);
    product.part = {k.k, k.count, column, columns};
    product.next = {};
    if (block + 1 < plan_.block_count) {
      product.next = {k.k + k.count, storage_.blocks[block + 1].count, column, columns};
    }
    product.x = x.data + k.k / plan_.step_k * x.rows * x.digits;
    product.blocks = storage_.digit_blocks + block * x.rows;
    direct(product);
  }
}

BlockSpan WeightQuantProduct::next_span(int64_t first) const {
  return span_from(storage_.blocks, plan_.block_count, first);
}

void WeightQuantProduct::load_span(const BlockSpan& span, int64_t column, int64_t columns,
                                   const ThreadScratch& scratch) const {
  kernel_.unpack(weight_, {span.k, span.count, column, columns}, scratch.panels);
  load_scales(span, column, columns, scratch);
}

void WeightQuantProduct::load_scales(const BlockSpan& span, int64_t column, int64_t columns,
                                     const ThreadScratch& scratch) const {
  for (int64_t block = span.first; block < span.last; ++block) {
    load_scales(block, block - span.first, column, columns, scratch);
  }
}

void WeightQuantProduct::add_f32(const PackedX& x, int64_t row, int64_t rows, int64_t column, int64_t columns,
                                 const ThreadScratch& scratch) const {
  const bool packed = weight_.order == WeightOrder::packed32;
  FloatProduct product;
  product.bias = static_cast<float>(problem_.panel_bias());
  product.rows = rows;
  product.tiles = ceil_divide(rows, kernel_.f32_tile_rows);
  product.channel_stride = product.c_stride = plan_.column_block;
  for (BlockSpan span = next_span(0); span.count > 0; span = next_span(span.last)) {
    packed ? load_scales(span, column, columns, scratch) : load_span(span, column, columns, scratch);
    product.k_blocks = storage_.blocks + span.first;
    product.block_count = span.last - span.first;
    product.steps = span.count;
    product.x = reinterpret_cast<const float*>(x.data) + span.k * x.rows + row * span.count;
    for (product.tile = 0; product.tile < product.tiles; product.tile = product.tile_end) {
      product.tile_end = std::min(product.tile + kTilesAtHand, product.tiles);
      for (int64_t panel = 0; panel < columns; panel += kPanelColumns) {
        product.panel = packed ? packed_panel(span, column + panel, columns - panel)
                               : Panel{scratch.panels + panel * round_up(span.count, 4)};
        product.scale = scratch.scale + panel;
        product.offset = problem_.has_offset ? scratch.offset + panel : nullptr;
        product.c = scratch.c + panel;
        kernel_.multiply_f32(product);
      }
    }
  }
}

// The strip of the last columns stands for one that is not there.
Panel WeightQuantProduct::packed_panel(const BlockSpan& span, int64_t column, int64_t columns) const {
  const int64_t step_bytes = weight_.bits * 16, strip_bytes = ceil_divide(problem_.k, 4) * step_bytes;
  return {weight_.data + column / kStreamColumns * strip_bytes + span.k / 4 * step_bytes, step_bytes,
          columns > kStreamColumns ? strip_bytes : 0, weight_.bits};
}

void WeightQuantProduct::add_panels(const PackedX& x, int64_t row, int64_t rows, int64_t column, int64_t columns,
                                    const ThreadScratch& scratch) const {
  const bool in_place = x.scheme == Scheme::words && weight_.order == WeightOrder::packed32;
  for (BlockSpan span = next_span(0); span.count > 0; span = next_span(span.last)) {
    in_place ? load_scales(span, column, columns, scratch) : load_span(span, column, columns, scratch);
    for (int64_t panel = 0; panel < columns; panel += kPanelColumns) {
      Panel codes = in_place ? packed_panel(span, column + panel, columns - panel)
                             : Panel{scratch.panels + panel * round_up(span.count, 4)};
      for (int64_t block = span.first; block < span.last; ++block) {
        const int64_t inside = storage_.blocks[block].k - span.k, steps = ceil_divide(storage_.blocks[block].count, 4);
        const Ahead ahead =
            look_ahead(weight_, {span.k + span.count, span.count, column, columns}, panel / kPanelColumns, inside);
        multiply_panel(x, row, rows, block, block - span.first, panel, codes, ahead, scratch);
        codes.data += steps * codes.step_bytes;
      }
    }
  }
}

void WeightQuantProduct::load_scales(int64_t block, int64_t slot, int64_t column, int64_t columns,
                                     const ThreadScratch& scratch) const {
  const int64_t group = storage_.blocks[block].k / problem_.group;
  load_channels(kernel_, problem_.scale, group, column, columns, scratch.scale + slot * plan_.column_block);
  if (problem_.has_offset) {
    load_channels(kernel_, problem_.offset, group, column, columns, scratch.offset + slot * plan_.column_block);
  }
}

void WeightQuantProduct::multiply_panel(const PackedX& x, int64_t row, int64_t rows, int64_t block, int64_t slot,
                                        int64_t panel, const Panel& codes, const Ahead& ahead,
                                        const ThreadScratch& scratch) const {
  const KBlock& k = storage_.blocks[block];
  PanelProduct product;
  product.scale = scratch.scale + slot * plan_.column_block + panel;
  product.offset = problem_.has_offset ? scratch.offset + slot * plan_.column_block + panel : nullptr;
  product.c = scratch.c + panel;
  product.c_stride = plan_.column_block;
  product.rows = rows;
  product.bias = static_cast<int16_t>(problem_.panel_bias());
  product.rests = x.digits < plan_.digits;
  product.planes = x.digits;
  product.ahead = ahead;
  product.steps = ceil_divide(k.count, plan_.step_k);
  product.x = x.data + (k.k / plan_.step_k * x.rows + row * product.steps) * x.digits;
  product.blocks = storage_.digit_blocks + block * x.rows + row;
  if (x.scheme == Scheme::bf16) {
    kernel_.bf16.panel(codes.data, k.count, static_cast<float>(problem_.panel_bias()), scratch.operand);
    product.panel = scratch.operand;
    return kernel_.bf16.multiply(product);
  }
  product.panel = codes.data;
  product.codes = codes;
  if (x.scheme == Scheme::pairs) return kernel_.pairs.multiply(product);
  x.scheme == Scheme::words ? kernel_.multiply_words(product) : kernel_.multiply_digits[x.digits](product);
}

void WeightQuantProduct::write_row(const PackedX& x, int64_t row, int64_t column, int64_t columns, float* c) const {
  if (x.scheme != Scheme::f32 && storage_.wants_f32[row]) return;
  if (problem_.has_int8_rows()) return problem_.sums->store(x.first + row, column, columns, c);
  const anynpu_tensor& y = problem_.args->y;
  const int64_t stride = y.strides[y.ndim - 1];
  RowOutput output = {};
  output.y = static_cast<uint8_t*>(y.data) +
             (row_elements(y, x.scheme == Scheme::f32 ? storage_.row_of[row] : x.first + row) + column * stride) *
                 dtype_bits(y.dtype) / 8;
  output.stride = stride;
  output.count = columns;
  output.dtype = y.dtype;
  if (problem_.has_bias) output.bias = storage_.bias + column;
  if (problem_.has_quant) {
    output.quant_scale = storage_.quant_scale + column;
    output.quant_offset = storage_.quant_offset + column;
  }
  kernel_.store_row(c, output);
}

}  // namespace anynpu
