// SPDX-License-Identifier: Apache-2.0
#include "ops/int4_pack/int4_pack.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>

#include "core/parallel.h"
#include "core/snapshot.h"
#include "core/tensor.h"

namespace anynpu {

ANYNPU_KERNELS(Int4PackKernel, int4_pack)

namespace {

constexpr int64_t kGrain = 1 << 15;  // values a thread; below it a second thread costs more than it gives
constexpr int64_t kRun = 512;        // values packed before more are fetched
constexpr int64_t kAhead = 2048;     // values
constexpr int64_t kBlock = 64;       // int4 columns of a block of FRACTAL_NZ

// Values held by one element of the packed tensor.
int values_per_element(int32_t dtype) { return dtype == ANYNPU_INT32 ? 8 : dtype == ANYNPU_UINT8 ? 2 : 1; }

int32_t check_packed(const char* op, const anynpu_tensor& weight, const anynpu_tensor& packed) {
  ANYNPU_TRY(check_dtype(op, "packed", packed, {ANYNPU_INT32, ANYNPU_UINT8, ANYNPU_INT4}));
  const int multiple = packed.dtype == ANYNPU_INT32 ? 8 : 2;
  const int last = weight.ndim - 1;
  if (weight.shape[last] % multiple != 0) {
    return fail(ANYNPU_BAD_SHAPE, "%s: weight last dim should be the multiple of %d, but it is %lld", op, multiple,
                wide(weight.shape[last]));
  }
  anynpu_tensor expected = weight;
  expected.shape[last] = weight.shape[last] / values_per_element(packed.dtype);
  return check_shape(op, "packed", packed, expected);
}

int32_t check_rank(const char* op, const anynpu_tensor& weight) {
  if (weight.ndim != 2 && weight.ndim != 3) {
    return fail(ANYNPU_BAD_SHAPE, "%s: weight shape only support dim num 2/3, but it is %d", op, weight.ndim);
  }
  if (element_count(weight) == 0) {
    return fail(ANYNPU_BAD_SHAPE, "%s: weight dim should be greater than 0, got shape %s", op, shape_text(weight));
  }
  return ANYNPU_OK;
}

int32_t check_pack(const anynpu_int4_pack_args& args) {
  constexpr const char* op = "int4_pack";
  ANYNPU_TRY(check_required(op, "weight", args.weight));
  ANYNPU_TRY(check_required(op, "packed", args.packed));
  ANYNPU_TRY(check_dtype(op, "weight", args.weight, {ANYNPU_INT32}));
  ANYNPU_TRY(check_rank(op, args.weight));
  ANYNPU_TRY(check_packed(op, args.weight, args.packed));
  ANYNPU_TRY(check_contiguous(op, "weight", args.weight));
  ANYNPU_TRY(check_contiguous(op, "packed", args.packed));
  if (args.weight.format != args.packed.format) {
    return fail(ANYNPU_BAD_SHAPE, "%s: format of packed must be that of weight, %d, got %d", op, args.weight.format,
                args.packed.format);
  }
  if (args.weight.format == ANYNPU_FRACTAL_NZ && (64 % nz_c0(args.weight) != 0 || nz_c0(args.weight) % 8 != 0)) {
    return fail(ANYNPU_BAD_SHAPE, "%s: FRACTAL_NZ blocks of weight must be 8, 16, 32 or 64 columns wide, got %lld", op,
                wide(nz_c0(args.weight)));
  }
  const int64_t width = nz_c0(args.packed) * values_per_element(args.packed.dtype);
  if (args.packed.format == ANYNPU_FRACTAL_NZ && width != kBlock) {
    return fail(ANYNPU_BAD_SHAPE, "%s: FRACTAL_NZ blocks of packed must be %lld int4 wide, got %lld", op, wide(kBlock),
                wide(width));
  }
  return ANYNPU_OK;
}

int32_t check_unpack(const anynpu_int4_unpack_args& args) {
  constexpr const char* op = "int4_unpack";
  ANYNPU_TRY(check_required(op, "packed", args.packed));
  ANYNPU_TRY(check_required(op, "weight", args.weight));
  ANYNPU_TRY(check_dtype(op, "weight", args.weight, {ANYNPU_INT32, ANYNPU_INT8}));
  if (args.weight.ndim < 1 || args.weight.format != ANYNPU_ND || args.packed.format != ANYNPU_ND) {
    return fail(ANYNPU_BAD_SHAPE, "%s: packed and weight must be ND with at least one axis", op);
  }
  ANYNPU_TRY(check_packed(op, args.weight, args.packed));
  ANYNPU_TRY(check_contiguous(op, "packed", args.packed));
  return check_contiguous(op, "weight", args.weight);
}

// Runs fn(first, count) over [0, values) split between threads at multiples of 64; fn returns nonzero for a bad range.
template <typename Function>
bool any_bad(int64_t values, const Function& fn) {
  std::atomic<bool> bad{false};
  parallel_for((values + 63) / 64, kGrain / 64, [&](int64_t begin, int64_t end) {
    const int64_t first = begin * 64;
    if (fn(first, std::min(end * 64, values) - first)) bad.store(true, std::memory_order_relaxed);
  });
  return bad.load();
}

bool pack_nd(const Int4PackKernel& kernel, const anynpu_int4_pack_args& args) {
  const auto* values = static_cast<const int32_t*>(args.weight.data);
  auto* packed = static_cast<uint8_t*>(args.packed.data);
  return any_bad(element_count(args.weight), [&](int64_t first, int64_t count) {
    int32_t bad = 0;
    for (int64_t end = first + count; first < end; first += kRun) {
      for (int64_t i = 0; i < kRun; i += 16) __builtin_prefetch(values + first + kAhead + i, 0, 2);
      bad |= kernel.pack(values + first, std::min(kRun, end - first), packed + first / 2);
    }
    return bad != 0;
  });
}

// Geometry of FRACTAL_NZ: [batch][column block][row, padded to 16][c0 columns].
struct Nz {
  int64_t batch, rows, columns, padded_rows, c0, blocks;
  Nz(const anynpu_tensor& weight, int64_t c0_columns)
      : batch(weight.ndim == 3 ? weight.shape[0] : 1),
        rows(weight.shape[weight.ndim - 2]),
        columns(weight.shape[weight.ndim - 1]),
        padded_rows((rows + 15) / 16 * 16),
        c0(c0_columns),
        blocks((columns + c0 - 1) / c0) {}
  int64_t values() const { return batch * blocks * padded_rows * c0; }
  int64_t position(int64_t plane, int64_t row, int64_t column) const {
    return ((plane * blocks + column / c0) * padded_rows + row) * c0 + column % c0;
  }
};

bool pack_nz(const Int4PackKernel& kernel, const anynpu_int4_pack_args& args) {
  const Nz from(args.weight, nz_c0(args.weight));
  const Nz to(args.weight, kBlock);
  const auto* values = static_cast<const int32_t*>(args.weight.data);
  auto* packed = static_cast<uint8_t*>(args.packed.data);
  return any_bad(to.values(), [&](int64_t first, int64_t count) {
    int32_t bad = 0;
    for (int64_t at = first; at < first + count; at += 64) {
      const int64_t row = at / 64 % to.padded_rows;
      const int64_t block = at / 64 / to.padded_rows % to.blocks;
      const int64_t plane = at / 64 / to.padded_rows / to.blocks;
      int32_t line[64] = {};
      if (row < from.rows) {
        for (int64_t column = block * 64; column < std::min(block * 64 + 64, from.columns); column += from.c0) {
          const int64_t width = std::min(from.c0, from.columns - column);
          std::memcpy(line + column % 64, values + from.position(plane, row, column), width * sizeof(int32_t));
        }
      }
      bad |= kernel.pack(line, 64, packed + at / 2);
    }
    return bad;
  });
}

int32_t report_value_outside(const anynpu_tensor& weight) {
  const auto* values = static_cast<const int32_t*>(weight.data);
  const int64_t rows = weight.shape[weight.ndim - 2], columns = weight.shape[weight.ndim - 1];
  const Nz nz(weight, nz_c0(weight));
  for (int64_t i = 0; i < element_count(weight); ++i) {
    const int64_t plane = i / columns / rows, row = i / columns % rows, column = i % columns;
    const int32_t value = values[weight.format == ANYNPU_ND ? i : nz.position(plane, row, column)];
    if (value >= -8 && value <= 7) continue;
    char index[64];
    if (weight.ndim == 3) {
      std::snprintf(index, sizeof(index), "%lld, %lld, %lld", wide(plane), wide(row), wide(column));
    } else {
      std::snprintf(index, sizeof(index), "%lld, %lld", wide(row), wide(column));
    }
    return fail(ANYNPU_BAD_VALUE, "int4_pack: every value of weight must be in [-8, 7], got %d at [%s]", value, index);
  }
  return fail(ANYNPU_BAD_VALUE, "int4_pack: weight held a value outside [-8, 7] and was changed during the call");
}

int32_t run_pack(const anynpu_int4_pack_args& args) {
  const Int4PackKernel& kernel = pick(kKernels);
  const bool nd = args.weight.format == ANYNPU_ND;
  const auto pack = [&] { return nd ? pack_nd(kernel, args) : pack_nz(kernel, args); };
  const int64_t values = nd ? element_count(args.weight) : Nz(args.weight, kBlock).values();
  const Snapshot snapshot(args.packed.data, values / 2, args.packed_is_scratch != 0);
  if (!snapshot.ok()) return fail(ANYNPU_NO_MEMORY, "int4_pack: no memory to guard the output");
  if (!pack()) return ANYNPU_OK;
  snapshot.restore();
  return report_value_outside(args.weight);
}

int32_t run_unpack(const anynpu_int4_unpack_args& args) {
  const Int4PackKernel& kernel = pick(kKernels);
  const auto* packed = static_cast<const uint8_t*>(args.packed.data);
  parallel_for(element_count(args.weight) / 2, kGrain, [&](int64_t begin, int64_t end) {
    const int64_t count = 2 * (end - begin);
    if (args.weight.dtype == ANYNPU_INT32) {
      kernel.unpack_int32(packed + begin, count, static_cast<int32_t*>(args.weight.data) + 2 * begin);
    } else {
      kernel.unpack_int8(packed + begin, count, static_cast<int8_t*>(args.weight.data) + 2 * begin);
    }
  });
  return ANYNPU_OK;
}

}  // namespace
}  // namespace anynpu

using anynpu::check_data;
using anynpu::fail;

extern "C" int32_t anynpu_int4_pack_check(const anynpu_int4_pack_args* args, size_t* workspace_bytes) {
  if (args == nullptr || workspace_bytes == nullptr) return fail(ANYNPU_NULL_ARG, "int4_pack: null argument");
  *workspace_bytes = 0;
  return anynpu::check_pack(*args);
}

extern "C" int32_t anynpu_int4_pack(const anynpu_int4_pack_args* args, void*, size_t) {
  size_t workspace_bytes = 0;
  ANYNPU_TRY(anynpu_int4_pack_check(args, &workspace_bytes));
  ANYNPU_TRY(check_data("int4_pack", "weight", args->weight));
  ANYNPU_TRY(check_data("int4_pack", "packed", args->packed));
  return anynpu::run_pack(*args);
}

extern "C" int32_t anynpu_int4_unpack_check(const anynpu_int4_unpack_args* args, size_t* workspace_bytes) {
  if (args == nullptr || workspace_bytes == nullptr) return fail(ANYNPU_NULL_ARG, "int4_unpack: null argument");
  *workspace_bytes = 0;
  return anynpu::check_unpack(*args);
}

extern "C" int32_t anynpu_int4_unpack(const anynpu_int4_unpack_args* args, void*, size_t) {
  size_t workspace_bytes = 0;
  ANYNPU_TRY(anynpu_int4_unpack_check(args, &workspace_bytes));
  ANYNPU_TRY(check_data("int4_unpack", "packed", args->packed));
  ANYNPU_TRY(check_data("int4_unpack", "weight", args->weight));
  return anynpu::run_unpack(*args);
}
