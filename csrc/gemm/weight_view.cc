// SPDX-License-Identifier: Apache-2.0
#include "gemm/weight_view.h"

#include <cstring>

#include "core/integer.h"

namespace anynpu {
namespace {

// The last two axes, in elements of the tensor's dtype.
struct Matrix {
  int64_t rows, columns, row_stride, column_stride;
  explicit Matrix(const anynpu_tensor& t)
      : rows(t.shape[t.ndim - 2]),
        columns(t.shape[t.ndim - 1]),
        row_stride(t.strides[t.ndim - 2]),
        column_stride(t.strides[t.ndim - 1]) {}
  bool contiguous() const { return (columns <= 1 || column_stride == 1) && (rows <= 1 || row_stride == columns); }
  bool swapped_contiguous() const { return (rows <= 1 || row_stride == 1) && (columns <= 1 || column_stride == rows); }
};

int values_per_element(int32_t dtype) { return dtype == ANYNPU_INT32 ? 8 : 1; }

// A stride of an axis that is never stepped along may be anything.
bool whole_bytes(int64_t size, int64_t stride, int32_t dtype) {
  return size <= 1 || dtype != ANYNPU_INT4 || stride % 2 == 0;
}

bool fits_plain(const anynpu_tensor& weight, const Matrix& m) {
  if (weight.format == ANYNPU_FRACTAL_NZ) return m.contiguous();
  return (m.columns <= 1 || m.column_stride == 1) && whole_bytes(m.rows, m.row_stride, weight.dtype);
}

bool fits_transposed(const anynpu_tensor& weight, const Matrix& m) {
  if (weight.format == ANYNPU_FRACTAL_NZ) return m.swapped_contiguous();
  return (m.rows <= 1 || m.row_stride == 1) && whole_bytes(m.columns, m.column_stride, weight.dtype);
}

bool is_transposed(const anynpu_tensor& weight, const Matrix& m, int64_t expected_k) {
  const bool plain = fits_plain(weight, m), transposed = fits_transposed(weight, m);
  if (!plain || !transposed) return transposed;
  const int64_t pack = values_per_element(weight.dtype);
  if (pack > 1 && expected_k >= 0 &&
      (m.rows == expected_k) != (expected_k % pack == 0 && m.rows == expected_k / pack)) {
    return m.rows != expected_k;
  }
  const bool strictly_plain = m.column_stride == 1 && m.row_stride == m.columns;
  return !strictly_plain && m.row_stride == 1 && m.column_stride == m.rows;
}

int32_t check_nz_width(const char* op, const char* name, const anynpu_tensor& weight, int64_t chunk, int32_t bits) {
  const int64_t multiple = bits == 4 ? 64 : 32;
  if (chunk > 0 && chunk % multiple == 0 && chunk <= 1024) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE, "%s: FRACTAL_NZ blocks of %s must be a multiple of %lld columns wide, got nz_c0 %d", op,
              name, wide(multiple / values_per_element(weight.dtype)), weight.nz_c0);
}

constexpr char kMagic4[8] = {'A', 'N', 'P', 'U', 'w', '4', 'p', '3'};
constexpr char kMagic8[8] = {'A', 'N', 'P', 'U', 'w', '8', 'p', '3'};

struct PackedHeader {
  char magic[8];
  uint32_t version;
  uint32_t bits;
  uint64_t k;
  uint64_t n;
  uint8_t reserved[32];
};
static_assert(sizeof(PackedHeader) == kPackedHeaderBytes, "the header is 64 bytes");

}  // namespace

int32_t view_weight(const char* op, const char* name, const anynpu_tensor& weight, int64_t expected_k,
                    WeightView* view) {
  if (weight.dtype != ANYNPU_INT8 && weight.dtype != ANYNPU_INT4 && weight.dtype != ANYNPU_INT32) {
    return fail(ANYNPU_BAD_DTYPE, "%s: %s must be int8, int4 or int32 (eight packed int4), got %s", op, name,
                dtype_name(weight.dtype));
  }
  const Matrix m(weight);
  if (!fits_plain(weight, m) && !fits_transposed(weight, m)) {
    return fail(ANYNPU_BAD_SHAPE,
                weight.format == ANYNPU_FRACTAL_NZ
                    ? "%s: FRACTAL_NZ %s must be contiguous or a transposed view of a contiguous one, got shape %s "
                      "strides (.., %lld, %lld)"
                    : "%s: %s must have stride 1 along one of its last two axes and whole bytes along the other, got "
                      "shape %s strides (.., %lld, %lld)",
                op, name, shape_text(weight), wide(m.row_stride), wide(m.column_stride));
  }
  const bool transposed = is_transposed(weight, m, expected_k);
  const int64_t pack = values_per_element(weight.dtype);
  if (m.rows > kLargestAxis || m.columns > kLargestAxis) {
    return fail(ANYNPU_BAD_SHAPE, "%s: axes of %s must be at most 2^40, got %s", op, name, shape_text(weight));
  }
  WeightSource& source = view->source;
  source.data = static_cast<const uint8_t*>(weight.data);
  source.order = transposed ? WeightOrder::rows_of_n : WeightOrder::rows_of_k;
  source.bits = weight.dtype == ANYNPU_INT8 ? 8 : 4;
  source.k = transposed ? m.rows * pack : m.rows;
  source.n = transposed ? m.columns : m.columns * pack;
  const int64_t element_bits = source.bits * pack;
  int64_t matrix_bytes = 0;
  if (weight.format == ANYNPU_FRACTAL_NZ) {
    const int64_t stored_rows = transposed ? source.n : source.k, stored_columns = transposed ? source.k : source.n;
    source.chunk = nz_c0(weight) * pack;
    ANYNPU_TRY(check_nz_width(op, name, weight, source.chunk, source.bits));
    source.row_bytes = source.chunk * source.bits / 8;
    source.chunk_bytes = round_up(stored_rows, 16) * source.row_bytes;
    matrix_bytes = round_up(stored_columns, source.chunk) / source.chunk * source.chunk_bytes;
  } else {
    source.chunk = round_up(kLargestAxis * 8, 64);
    source.chunk_bytes = 0;
    source.row_bytes = (transposed ? m.column_stride : m.row_stride) * element_bits / 8;
  }
  int64_t nz_planes = 1;
  for (int axis = weight.ndim - 3; axis >= 0; --axis) {
    if (!whole_bytes(weight.shape[axis], weight.strides[axis], weight.dtype)) {
      return fail(ANYNPU_BAD_SHAPE, "%s: batch strides of int4 %s must be even, got %lld", op, name,
                  wide(weight.strides[axis]));
    }
    const bool nz = weight.format == ANYNPU_FRACTAL_NZ;
    view->batch_bytes[axis] = nz ? nz_planes * matrix_bytes : weight.strides[axis] * element_bits / 8;
    nz_planes *= weight.shape[axis];
  }
  return ANYNPU_OK;
}

Ahead look_ahead(const WeightSource& weight, WeightPart next, int64_t panel, int64_t inside) {
  if (next.k >= weight.k) {
    next.k = 0;
    next.n += next.n_count;
    if (next.n >= weight.n) return {};
  }
  const int64_t steps = next.k_count / 4, step = inside / 4;
  if (steps == 0) return {};
  const int64_t first = next.n + panel * kPanelColumns;
  if (weight.order == WeightOrder::packed32) {
    const int64_t cell = weight.bits * 16, block = (weight.k + 3) / 4 * cell;
    return {weight.data + first / 32 * block + (next.k / 4 + step) * cell, cell, block, 2};
  }
  const bool blocked = weight.chunk_bytes != 0;
  const auto at = [&](int64_t row, int64_t element) {
    return weight.data + element / weight.chunk * weight.chunk_bytes + row * weight.row_bytes +
           element % weight.chunk * weight.bits / 8;
  };
  if (weight.order == WeightOrder::rows_of_n) {
    const int64_t rows = kPanelColumns / steps < 1 ? 1 : kPanelColumns / steps;  // a step
    const int64_t lines = blocked ? next.k_count / weight.chunk : next.k_count * weight.bits / 512;
    return {at(first + step * rows, next.k), rows * weight.row_bytes, blocked ? weight.chunk_bytes : 64, lines};
  }
  if (blocked) {
    return {at(next.k + inside, first), 4 * weight.row_bytes, weight.bits == 4 ? 64 : weight.chunk_bytes, 2};
  }
  // Rows of k are shared out among the panels: a few whole rows to each step, or the lines of one row.
  const int64_t panels = (next.n_count + kPanelColumns - 1) / kPanelColumns;
  const int64_t rows = panels >= 4 ? 1 : 4 / panels;
  const int64_t row = next.k + (panel * steps + step) * rows;
  const int64_t lines = panels >= 4 ? next.n_count * weight.bits / 512 : rows;
  return {at(row, next.n), rows * weight.row_bytes, panels >= 4 ? 64 : weight.row_bytes, lines};
}

int64_t packed32_bytes(int32_t bits, int64_t k, int64_t n) {
  return kPackedHeaderBytes + round_up(n, 32) / 32 * (round_up(k, 4) / 4) * (bits * 16);
}

void write_packed32_header(int32_t bits, int64_t k, int64_t n, uint8_t* blob) {
  PackedHeader header = {};
  std::memcpy(header.magic, bits == 4 ? kMagic4 : kMagic8, sizeof(header.magic));
  header.version = 1;
  header.bits = static_cast<uint32_t>(bits);
  header.k = static_cast<uint64_t>(k);
  header.n = static_cast<uint64_t>(n);
  std::memcpy(blob, &header, sizeof(header));
}

int32_t view_packed32(const char* op, const char* name, const uint8_t* blob, int64_t bytes, WeightSource* source) {
  PackedHeader header = {};
  if (bytes >= kPackedHeaderBytes) std::memcpy(&header, blob, sizeof(header));
  const bool is4 = std::memcmp(header.magic, kMagic4, sizeof(kMagic4)) == 0;
  const bool is8 = std::memcmp(header.magic, kMagic8, sizeof(kMagic8)) == 0;
  if (!is4 && !is8) {
    return fail(ANYNPU_BAD_VALUE,
                "%s: a uint8 %s must be a blob of weight_quant_prepack (w4p32 or w8p32), got %lld "
                "bytes of something else",
                op, name, wide(bytes));
  }
  if (header.version != 1 || header.bits != (is4 ? 4u : 8u)) {
    return fail(ANYNPU_BAD_VALUE, "%s: prepacked %s must be version 1, got version %u with %u bits", op, name,
                header.version, header.bits);
  }
  const uint64_t most = static_cast<uint64_t>(kLargestAxis);
  const bool sane =
      header.k <= most && header.n <= most && (header.n == 0 || header.k <= (uint64_t{1} << 58) / header.n);
  const int64_t expected =
      sane ? packed32_bytes(is4 ? 4 : 8, static_cast<int64_t>(header.k), static_cast<int64_t>(header.n)) : -1;
  if (bytes != expected) {
    return fail(ANYNPU_BAD_VALUE, "%s: prepacked %s of K %llu and N %llu must have %lld bytes, got %lld", op, name,
                static_cast<unsigned long long>(header.k), static_cast<unsigned long long>(header.n), wide(expected),
                wide(bytes));
  }
  *source = {blob + kPackedHeaderBytes,
             WeightOrder::packed32,
             is4 ? 4 : 8,
             static_cast<int64_t>(header.k),
             static_cast<int64_t>(header.n),
             0,
             1,
             0};
  return ANYNPU_OK;
}

}  // namespace anynpu
