// SPDX-License-Identifier: Apache-2.0
#include "ops/anti_quant/anti_quant.h"

#include <algorithm>

#include "core/parallel.h"
#include "core/scratch.h"
#include "core/tensor.h"
#include "gemm/gemm.h"

namespace anynpu {

ANYNPU_KERNELS(AntiQuantKernel, anti_quant)

namespace {

constexpr const char* kOp = "anti_quant";
constexpr int64_t kGrain = 1 << 14;  // values a thread; below it a second thread costs more than it gives
constexpr int64_t kPiece = 2048;     // int4 codes of a row that are unpacked at once
constexpr int64_t kWord = 8;         // int4 codes of an int32
using Args = anynpu_anti_quant_args;

int64_t width_of(const anynpu_tensor& x) {
  return x.ndim == 0 ? 0 : x.shape[x.ndim - 1] * (x.dtype == ANYNPU_INT32 ? kWord : 1);
}

int32_t check_x(const anynpu_tensor& x) {
  ANYNPU_TRY(check_required(kOp, "x", x));
  if (x.dtype != ANYNPU_INT4) ANYNPU_TRY(check_dtype(kOp, "x", x, {ANYNPU_INT8, ANYNPU_INT32}));
  if (x.ndim < 1) return fail(ANYNPU_BAD_SHAPE, "%s: x must have 1 to %d axes, got 0", kOp, ANYNPU_MAX_DIMS);
  if (element_count(x) == 0) {
    return fail(ANYNPU_BAD_SHAPE, "%s: x must not be empty, got shape %s", kOp, shape_text(x));
  }
  if (x.shape[x.ndim - 1] > INT32_MAX) {
    return fail(ANYNPU_BAD_SHAPE, "%s: the last axis of x is too long, got shape %s", kOp, shape_text(x));
  }
  if (x.dtype == ANYNPU_INT4 && x.shape[x.ndim - 1] % 2 != 0) {
    return fail(ANYNPU_BAD_SHAPE, "%s: the last axis of int4 x must be even, got shape %s", kOp, shape_text(x));
  }
  return check_plain(kOp, "x", x);
}

int32_t check_factors(const char* name, const anynpu_tensor& factors, int64_t n) {
  ANYNPU_TRY(check_required(kOp, name, factors));
  ANYNPU_TRY(check_dtype(kOp, name, factors, {ANYNPU_FLOAT32, ANYNPU_BFLOAT16, ANYNPU_FLOAT16}));
  if (factors.ndim != 1 || (factors.shape[0] != 1 && factors.shape[0] != n)) {
    return fail(ANYNPU_BAD_SHAPE, "%s: %s must have shape (1,) or (N,) = (%lld,), got %s", kOp, name, wide(n),
                shape_text(factors));
  }
  return check_plain(kOp, name, factors);
}

int32_t check(const Args& args) {
  const anynpu_tensor &x = args.x, &y = args.y;
  ANYNPU_TRY(check_x(x));
  const int64_t n = width_of(x);
  ANYNPU_TRY(check_factors("scale", args.scale, n));
  if (present(args.offset)) {
    ANYNPU_TRY(check_factors("offset", args.offset, n));
    ANYNPU_TRY(check_dtype(kOp, "offset", args.offset, {args.scale.dtype}));
  }
  ANYNPU_TRY(check_required(kOp, "y", y));
  ANYNPU_TRY(check_dtype(kOp, "dtype", y, {ANYNPU_FLOAT16, ANYNPU_BFLOAT16}));
  anynpu_tensor expected = x;
  expected.shape[x.ndim - 1] = n;
  ANYNPU_TRY(check_shape(kOp, "y", y, expected));
  return check_plain(kOp, "y", y);
}

// A factor of each column.
void load_factors(const anynpu_tensor& factors, int64_t n, float* to) {
  if (!present(factors)) {
    std::fill_n(to, n, 0.0f);
    return;
  }
  gemm_kernel().load_floats(factors.data, factors.dtype, 1, factors.shape[0], to);
  if (factors.shape[0] == 1) std::fill_n(to + 1, n - 1, to[0]);
}

void unpack(const uint8_t* packed, int64_t count, int8_t* codes) {
  const anynpu_tensor from{const_cast<uint8_t*>(packed), ANYNPU_INT4, ANYNPU_ND, 1, 0, {count}, {1}};
  const anynpu_int4_unpack_args args{from, {codes, ANYNPU_INT8, ANYNPU_ND, 1, 0, {count}, {1}}};
  anynpu_int4_unpack(&args, nullptr, 0);
}

int32_t run(const Args& args) {
  const int64_t n = width_of(args.x), values = element_count(args.y);
  auto* scale = static_cast<float*>(scratch(ScratchSlot::main, 2 * n * sizeof(float)));
  if (scale == nullptr) return fail(ANYNPU_NO_MEMORY, "%s: no memory for %lld factors", kOp, wide(n));
  float* offset = scale + n;
  load_factors(args.scale, n, scale);
  load_factors(args.offset, n, offset);
  const AntiQuantKernel& kernel = pick(kKernels);
  const bool packed = args.x.dtype != ANYNPU_INT8;
  const auto* x = static_cast<const uint8_t*>(args.x.data);
  auto* y = static_cast<uint16_t*>(args.y.data);
  parallel_for(values / 2 + values % 2, kGrain / 2, [&](int64_t begin, int64_t end) {  // whole bytes of int4
    for (int64_t at = 2 * begin, last = std::min(2 * end, values); at < last;) {
      const int64_t column = at % n, most = packed ? kPiece : n;
      const int64_t count = std::min({n - column, last - at, most});
      int8_t codes[kPiece];
      if (packed) unpack(x + at / 2, count, codes);
      kernel.dequantise(packed ? codes : reinterpret_cast<const int8_t*>(x) + at, scale + column, offset + column,
                        count, args.y.dtype, y + at);
      at += count;
    }
  });
  return ANYNPU_OK;
}

}  // namespace
}  // namespace anynpu

using anynpu::check_data;
using anynpu::fail;

extern "C" int32_t anynpu_anti_quant_check(const anynpu_anti_quant_args* args, size_t* workspace_bytes) {
  if (args == nullptr || workspace_bytes == nullptr) return fail(ANYNPU_NULL_ARG, "anti_quant: null argument");
  *workspace_bytes = 0;
  return anynpu::check(*args);
}

extern "C" int32_t anynpu_anti_quant(const anynpu_anti_quant_args* args, void*, size_t) {
  if (args == nullptr) return fail(ANYNPU_NULL_ARG, "anti_quant: null argument");
  ANYNPU_TRY(anynpu::check(*args));
  ANYNPU_TRY(check_data("anti_quant", "x", args->x));
  ANYNPU_TRY(check_data("anti_quant", "scale", args->scale));
  ANYNPU_TRY(check_data("anti_quant", "offset", args->offset));
  ANYNPU_TRY(check_data("anti_quant", "y", args->y));
  return anynpu::run(*args);
}
