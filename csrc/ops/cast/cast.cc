// SPDX-License-Identifier: Apache-2.0
#include "ops/cast/cast.h"

#include <algorithm>

#include "core/parallel.h"
#include "core/strided.h"

namespace anynpu {

ANYNPU_KERNELS(CastKernel, cast)

namespace {

constexpr int32_t kDtypes[] = {
#define ANYNPU_CODE(code, type) ANYNPU_##code,
    ANYNPU_CAST_DTYPES(ANYNPU_CODE)
#undef ANYNPU_CODE
};

constexpr int64_t kTile = 1024;  // values that one step gathers; 8 KiB of the widest type on either side
constexpr int64_t kGrain = 32;   // tiles a thread; below it a second thread costs more than it gives

int index_of(int32_t dtype) {
  const int index = static_cast<int>(std::find(kDtypes, kDtypes + kCastDtypes, dtype) - kDtypes);
  return index == kCastDtypes ? -1 : index;
}

int32_t check_one(const char* name, const anynpu_tensor& tensor, Access access) {
  ANYNPU_TRY(check_required("cast", name, tensor));
  if (index_of(tensor.dtype) < 0) {
    return fail(ANYNPU_BAD_DTYPE, "cast: %s must be a float, integer or bool of whole bytes, got %s", name,
                dtype_name(tensor.dtype));
  }
  if (tensor.format != ANYNPU_ND) {
    return fail(ANYNPU_BAD_SHAPE, "cast: format of %s must be ND (2), got %d", name, tensor.format);
  }
  return check_strides("cast", name, tensor, access);
}

int32_t check(const anynpu_cast_args& args) {
  ANYNPU_TRY(check_one("x", args.x, Access::read));
  ANYNPU_TRY(check_one("y", args.y, Access::write));
  if (same_shape(args.x, args.y)) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE, "cast: y must have the shape of x, %s, got %s", shape_text(args.x), shape_text(args.y));
}

void cast_tile(const anynpu_cast_args& args, CastFunction convert, int64_t first, int64_t count) {
  const bool direct_x = is_contiguous(args.x), direct_y = is_contiguous(args.y);
  alignas(64) char x_tile[8 * kTile], y_tile[8 * kTile];
  const void* x = static_cast<const char*>(args.x.data) + first * dtype_bits(args.x.dtype) / 8;
  void* y = static_cast<char*>(args.y.data) + first * dtype_bits(args.y.dtype) / 8;
  if (!direct_x) gather(args.x, first, count, x_tile);
  convert(direct_x ? x : x_tile, count, direct_y ? y : y_tile);
  if (!direct_y) scatter(y_tile, args.y, first, count);
}

void run(const anynpu_cast_args& args) {
  const CastFunction convert = cast_function(args.x.dtype, args.y.dtype);
  const int64_t count = element_count(args.x);
  parallel_for((count + kTile - 1) / kTile, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t first = begin * kTile; first < std::min(end * kTile, count); first += kTile) {
      cast_tile(args, convert, first, std::min(kTile, count - first));
    }
  });
}

}  // namespace

CastFunction cast_function(int32_t from, int32_t to) {
  const int row = index_of(from), column = index_of(to);
  return row < 0 || column < 0 ? nullptr : pick(kKernels).from[row][column];
}

}  // namespace anynpu

extern "C" int32_t anynpu_cast_check(const anynpu_cast_args* args, size_t* workspace_bytes) {
  if (args == nullptr || workspace_bytes == nullptr) return anynpu::fail(ANYNPU_NULL_ARG, "cast: null argument");
  *workspace_bytes = 0;
  return anynpu::check(*args);
}

extern "C" int32_t anynpu_cast(const anynpu_cast_args* args, void*, size_t) {
  size_t workspace_bytes = 0;
  ANYNPU_TRY(anynpu_cast_check(args, &workspace_bytes));
  ANYNPU_TRY(anynpu::check_data("cast", "x", args->x));
  ANYNPU_TRY(anynpu::check_data("cast", "y", args->y));
  anynpu::run(*args);
  return ANYNPU_OK;
}
