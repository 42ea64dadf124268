// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "core/quant_param.h"
#include "core/strided.h"
#include "gemm/weight_view.h"
#include "ops/quant_matmul/columns.h"
#include "ops/quant_matmul/int4_gemm.h"
#include "ops/quant_matmul/int8_gemm.h"

namespace anynpu {
namespace {

constexpr const char* kOp = "quant_matmul";

bool is_prepacked(const anynpu_tensor& x2) { return x2.dtype == ANYNPU_UINT8; }

int64_t last_axis(const anynpu_tensor& tensor) { return tensor.ndim > 0 ? tensor.shape[tensor.ndim - 1] : 0; }

// Size of a prepacked x2, -1 where K or N is out of range.
int64_t prepacked_bytes(const anynpu_quant_matmul_args& args, int32_t bits) {
  const int64_t k = last_axis(args.x1), n = last_axis(args.y);
  return k <= kMostInt8K && n <= kLargestAxis ? packed32_bytes(bits, k, n) : -1;
}

// Of a weight. Prepacked ones tell their bits by their size.
int32_t bits_of(const anynpu_quant_matmul_args& args) {
  const anynpu_tensor& x2 = args.x2;
  if (is_prepacked(x2)) return x2.ndim == 1 && x2.shape[0] == prepacked_bytes(args, 8) ? 8 : 4;
  return x2.dtype == ANYNPU_INT32 || x2.dtype == ANYNPU_INT4 ? 4 : 8;
}

bool is_int4(const anynpu_quant_matmul_args& args) { return bits_of(args) == 4; }

// What int4 weights and groups ask for beyond the rules of int8.
int32_t check_int4(const anynpu_quant_matmul_args& args) {
  if (args.x1.dtype == ANYNPU_INT32 || args.x1.dtype == ANYNPU_INT4) {
    return fail(ANYNPU_UNSUPPORTED, "%s: int4 x1 (int32) is not implemented", kOp);
  }
  if (args.group_size != 0 && !is_int4(args)) {
    return fail(ANYNPU_UNSUPPORTED, "%s: groups are implemented for int8 x1 and int4 (int32) x2, got %s and %s", kOp,
                dtype_name(args.x1.dtype), dtype_name(args.x2.dtype));
  }
  if (args.group_size < 0 || args.group_size % 32 != 0) {
    return fail(ANYNPU_BAD_SHAPE, "%s: group_size must be 0 or a positive multiple of 32, got %lld", kOp,
                wide(args.group_size));
  }
  if (!is_int4(args)) return ANYNPU_OK;
  if (args.y.dtype == ANYNPU_INT8 || args.y.dtype == ANYNPU_INT32) {
    return fail(ANYNPU_BAD_DTYPE,
                "%s: When input's dtype is int32, output_dtype must be float16, bfloat16 or float32, but it is %s", kOp,
                dtype_name(args.y.dtype));
  }
  if (args.group_size != 0 && present(args.bias) && args.bias.dtype == ANYNPU_INT32) {
    return fail(ANYNPU_BAD_DTYPE, "%s: an int32 bias must be absent with groups, whose sums are scaled apart", kOp);
  }
  return ANYNPU_OK;
}

int32_t check_dtypes(const anynpu_quant_matmul_args& args) {
  ANYNPU_TRY(check_int4(args));
  ANYNPU_TRY(check_dtype(kOp, "x1", args.x1, {ANYNPU_INT8}));
  ANYNPU_TRY(check_dtype(kOp, "x2", args.x2, {ANYNPU_INT8, ANYNPU_INT4, ANYNPU_INT32, ANYNPU_UINT8}));
  ANYNPU_TRY(check_dtype(kOp, "scale", args.scale, {ANYNPU_INT64, ANYNPU_UINT64, ANYNPU_FLOAT32, ANYNPU_BFLOAT16}));
  ANYNPU_TRY(check_dtype(kOp, "offset", args.offset, {ANYNPU_FLOAT32}));
  ANYNPU_TRY(check_dtype(kOp, "pertoken_scale", args.pertoken_scale, {ANYNPU_FLOAT32}));
  ANYNPU_TRY(check_dtype(kOp, "bias", args.bias, {ANYNPU_INT32, ANYNPU_BFLOAT16, ANYNPU_FLOAT16, ANYNPU_FLOAT32}));
  ANYNPU_TRY(
      check_dtype(kOp, "y", args.y, {ANYNPU_INT8, ANYNPU_FLOAT16, ANYNPU_BFLOAT16, ANYNPU_FLOAT32, ANYNPU_INT32}));
  const int32_t y = args.y.dtype;
  if (present(args.bias) && args.bias.dtype == ANYNPU_BFLOAT16 && y != ANYNPU_BFLOAT16) {
    return fail(ANYNPU_BAD_DTYPE, "%s: When bias dtype is bfloat16, output_dtype must be bfloat16, but it is %s", kOp,
                dtype_name(y));
  }
  if (present(args.bias) && y == ANYNPU_INT32 && args.bias.dtype != ANYNPU_INT32) {
    return fail(ANYNPU_BAD_DTYPE, "%s: When output_dtype dtype is int32, bias_dtype must be int32, but it is %s", kOp,
                dtype_name(args.bias.dtype));
  }
  if (present(args.bias) && args.bias.dtype == ANYNPU_FLOAT16 && !present(args.pertoken_scale)) {
    return fail(ANYNPU_BAD_DTYPE, "%s: Bias dtype cannot be float16 when pertoken not given.", kOp);
  }
  if (args.scale.dtype == ANYNPU_BFLOAT16 && y != ANYNPU_BFLOAT16 && y != ANYNPU_INT32) {
    return fail(ANYNPU_BAD_DTYPE,
                "%s: When scale's dtype is bfloat16, output_dtype must be bfloat16 or int32, but output_dtype is %s",
                kOp, dtype_name(y));
  }
  return ANYNPU_OK;
}

struct Shape {
  int64_t m, k, n;
  Channels scale;  // of groups
  int batch_axes;
  int64_t batch[ANYNPU_MAX_DIMS];
  WeightView weight;
};

int32_t check_prepacked(const anynpu_quant_matmul_args& args, Shape* shape) {
  const anynpu_tensor& x2 = args.x2;
  const int64_t int4_bytes = prepacked_bytes(args, 4), int8_bytes = prepacked_bytes(args, 8);
  shape->n = last_axis(args.y);
  shape->weight.source.bits = bits_of(args);
  const bool fits = x2.ndim == 1 && (x2.shape[0] == int4_bytes || x2.shape[0] == int8_bytes);
  if (fits && x2.format == ANYNPU_ND && is_contiguous(x2)) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE,
              "%s: a prepacked (uint8) x2 for K %lld and N %lld must be contiguous with one axis of %lld (w4p32) or "
              "%lld (w8p32) bytes, got shape %s",
              kOp, wide(shape->k), wide(shape->n), wide(int4_bytes), wide(int8_bytes), shape_text(x2));
}

// K and N, and how x2 lies.
int32_t check_weight(const anynpu_quant_matmul_args& args, Shape* shape) {
  const anynpu_tensor& x2 = args.x2;
  if (is_prepacked(x2)) return check_prepacked(args, shape);
  if (is_int4(args) && x2.ndim != 2) {
    return fail(ANYNPU_BAD_SHAPE, "%s: an int4 x2 must have 2 axes, got %d", kOp, x2.ndim);
  }
  if (x2.format == ANYNPU_ND) ANYNPU_TRY(check_strides(kOp, "x2", x2, Access::read));
  ANYNPU_TRY(view_weight(kOp, "x2", x2, shape->k, &shape->weight));
  shape->n = shape->weight.source.n;
  if (shape->weight.source.k == shape->k) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE,
              "%s: k dim of x1 and x2 need be same, please check k dim of x1 and x2: x1 is %s, x2 is %s", kOp,
              shape_text(args.x1), shape_text(x2));
}

// Axis `axis` of `axes` leading axes of y in `tensor`: 1 where the tensor has none.
int64_t batch_size(const anynpu_tensor& tensor, int axes, int axis) {
  const int own = axis - (axes - (tensor.ndim - 2));
  return own < 0 ? 1 : tensor.shape[own];
}

int32_t check_shapes(const anynpu_quant_matmul_args& args, Shape* shape) {
  const anynpu_tensor &x1 = args.x1, &x2 = args.x2;
  for (const anynpu_tensor* x : {&x1, &x2}) {
    if ((x->ndim >= 2 && x->ndim <= 6) || (x == &x2 && is_prepacked(x2))) continue;
    const char* name = x == &x1 ? "x1" : "x2";
    return fail(ANYNPU_BAD_SHAPE, "%s: %s dim num should be 2 ~ 6, please check %s dim num, got %d", kOp, name, name,
                x->ndim);
  }
  if (x1.format != ANYNPU_ND) return fail(ANYNPU_BAD_SHAPE, "%s: x1 must be ND", kOp);
  shape->m = x1.shape[x1.ndim - 2];
  shape->k = x1.shape[x1.ndim - 1];
  ANYNPU_TRY(check_weight(args, shape));
  if (shape->k < 1 || shape->k > kMostInt8K) {
    return fail(ANYNPU_BAD_SHAPE, "%s: K must be in [1, %lld] so that int32 sums are exact, got %lld", kOp,
                wide(kMostInt8K), wide(shape->k));
  }
  shape->batch_axes = std::max(x1.ndim, x2.ndim) - 2;
  for (int axis = 0; axis < shape->batch_axes; ++axis) {
    const int64_t a = batch_size(x1, shape->batch_axes, axis), b = batch_size(x2, shape->batch_axes, axis);
    if (a != b && a != 1 && b != 1) {
      return fail(ANYNPU_BAD_SHAPE, "%s: the batch shape cannot be broadcast: x1 is %s, x2 is %s", kOp, shape_text(x1),
                  shape_text(x2));
    }
    shape->batch[axis] = a == 1 ? b : a;
  }
  return check_strides(kOp, "x1", x1, Access::read);
}

int32_t check_columns(const char* name, const anynpu_tensor& tensor, int64_t n) {
  if (!present(tensor)) return ANYNPU_OK;
  if (tensor.ndim != 1 || tensor.format != ANYNPU_ND) {
    return fail(ANYNPU_BAD_SHAPE, "%s: the %s dim num must be 1, please check %s dim num, got shape %s", kOp, name,
                name, shape_text(tensor));
  }
  if (tensor.shape[0] != 1 && tensor.shape[0] != n) {
    return fail(ANYNPU_BAD_SHAPE, "%s: %s must have shape (1,) or (N,) = (%lld,), got %s", kOp, name, wide(n),
                shape_text(tensor));
  }
  return check_strides(kOp, name, tensor, Access::read);
}

// (N) or (1), and of groups (ceil(K / group_size), N).
int32_t check_scale(const anynpu_quant_matmul_args& args, Shape* shape) {
  const anynpu_tensor& scale = args.scale;
  if (args.group_size == 0) return check_columns("scale", scale, shape->n);
  const int64_t groups = (shape->k + args.group_size - 1) / args.group_size;
  if (scale.ndim != 2 || scale.shape[0] != groups || scale.shape[1] != shape->n || scale.format != ANYNPU_ND) {
    return fail(ANYNPU_BAD_SHAPE, "%s: scale must have shape (ceil(K / %lld), N) = (%lld, %lld), got %s", kOp,
                wide(args.group_size), wide(groups), wide(shape->n), shape_text(scale));
  }
  const int32_t dtype = scale.dtype == ANYNPU_UINT64 ? static_cast<int32_t>(ANYNPU_INT64) : scale.dtype;
  shape->scale = {scale.data, dtype, scale.strides[0], scale.strides[1]};
  return check_strides(kOp, "scale", scale, Access::read);
}

int32_t check_offset(const anynpu_quant_matmul_args& args, const Shape& shape) {
  ANYNPU_TRY(check_columns("offset", args.offset, shape.n));
  if (!present(args.offset) || args.group_size != 0 || args.y.dtype == ANYNPU_INT8) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE, "%s: offset needs an int8 output, got %s", kOp, dtype_name(args.y.dtype));
}

// (M), and of groups also (M, 1).
int32_t check_pertoken_scale(const anynpu_quant_matmul_args& args, int64_t m) {
  const anynpu_tensor& token = args.pertoken_scale;
  const bool one_axis = token.ndim == 1 || (args.group_size != 0 && token.ndim == 2 && token.shape[1] == 1);
  if (!present(token) || (one_axis && token.shape[0] == m && token.format == ANYNPU_ND)) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE, "%s: the pertoken_scale dim num must be 1 and its shape (M,) = (%lld,), got %s", kOp,
              wide(m), shape_text(token));
}

int32_t check_bias(const anynpu_tensor& bias, const Shape& shape) {
  if (!present(bias)) return ANYNPU_OK;
  const bool plain = bias.ndim == 1 && bias.shape[0] == shape.n;
  const bool batched = bias.ndim == 3 && shape.batch_axes == 1 && bias.shape[0] == shape.batch[0] &&
                       bias.shape[1] == 1 && bias.shape[2] == shape.n;
  if (bias.ndim == 3 && shape.batch_axes != 1) {
    return fail(ANYNPU_BAD_SHAPE, "%s: when bias dim is 3, out dim need to be 3, got %d", kOp, shape.batch_axes + 2);
  }
  if (bias.format != ANYNPU_ND || (!plain && !batched)) {
    return fail(ANYNPU_BAD_SHAPE, "%s: bias must have shape (N,) = (%lld,), or (batch, 1, N) when y has 3 axes, got %s",
                kOp, wide(shape.n), shape_text(bias));
  }
  return check_strides(kOp, "bias", bias, Access::read);
}

int32_t check_y(const anynpu_tensor& y, const Shape& shape) {
  anynpu_tensor expected = y;
  expected.ndim = shape.batch_axes + 2;
  std::copy(shape.batch, shape.batch + shape.batch_axes, expected.shape);
  expected.shape[shape.batch_axes] = shape.m;
  expected.shape[shape.batch_axes + 1] = shape.n;
  if (element_count(expected) < 0) return fail(ANYNPU_BAD_SHAPE, "%s: y is too large: %s", kOp, shape_text(expected));
  ANYNPU_TRY(check_shape(kOp, "y", y, expected));
  return check_plain(kOp, "y", y);
}

int32_t check(const anynpu_quant_matmul_args& args, Shape* shape) {
  ANYNPU_TRY(check_required(kOp, "x1", args.x1));
  ANYNPU_TRY(check_required(kOp, "x2", args.x2));
  ANYNPU_TRY(check_required(kOp, "scale", args.scale));
  ANYNPU_TRY(check_tensor(kOp, "offset", args.offset));
  ANYNPU_TRY(check_tensor(kOp, "pertoken_scale", args.pertoken_scale));
  ANYNPU_TRY(check_tensor(kOp, "bias", args.bias));
  ANYNPU_TRY(check_required(kOp, "y", args.y));
  ANYNPU_TRY(check_dtypes(args));
  ANYNPU_TRY(check_shapes(args, shape));
  ANYNPU_TRY(check_scale(args, shape));
  ANYNPU_TRY(check_offset(args, *shape));
  ANYNPU_TRY(check_pertoken_scale(args, shape->m));
  ANYNPU_TRY(check_bias(args.bias, *shape));
  return check_y(args.y, *shape);
}

class PlainWeight final : public PanelSource {
 public:
  explicit PlainWeight(const WeightSource& source) : source_(source) {}
  bool fill(const WeightPart& part, uint8_t* panels) const override {
    gemm_kernel().unpack(source_, part, panels);
    return true;
  }
  const WeightSource* plain() const override { return &source_; }
  int64_t deep() const override { return kMostInt8K + 1; }
  // Long runs of rows of k, which lie pages apart.
  int64_t wide() const override {
    return source_.order == WeightOrder::rows_of_k && source_.chunk_bytes == 0 ? 512 : 128;
  }

 private:
  const WeightSource source_;
};

// What a batch adds to the addresses.
struct BatchOffsets {
  int64_t x1;  // elements
  int64_t x2_bytes;
  int64_t bias;  // elements
};

BatchOffsets batch_offsets(const anynpu_quant_matmul_args& args, const Shape& shape, int64_t index) {
  BatchOffsets offsets = {};
  for (int axis = shape.batch_axes - 1; axis >= 0; --axis) {
    const int64_t at = index % shape.batch[axis];
    index /= shape.batch[axis];
    const int own1 = axis - (shape.batch_axes - (args.x1.ndim - 2)),
              own2 = axis - (shape.batch_axes - (args.x2.ndim - 2));
    if (own1 >= 0 && args.x1.shape[own1] > 1) offsets.x1 += at * args.x1.strides[own1];
    if (own2 >= 0 && args.x2.shape[own2] > 1) offsets.x2_bytes += at * shape.weight.batch_bytes[own2];
    if (args.bias.ndim == 3) offsets.bias += at * args.bias.strides[0];
  }
  return offsets;
}

int64_t product(const int64_t* sizes, int count) {
  int64_t result = 1;
  for (int i = 0; i < count; ++i) result *= sizes[i];
  return result;
}

int32_t read_prepacked(const anynpu_tensor& x2, Shape* shape) {
  WeightSource& source = shape->weight.source;
  ANYNPU_TRY(view_packed32(kOp, "x2", static_cast<const uint8_t*>(x2.data), x2.shape[0], &source));
  if (source.k == shape->k && source.n == shape->n) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE, "%s: prepacked x2 is (%lld, %lld) in %d bits, but x1 has K %lld and y has N %lld", kOp,
              wide(source.k), wide(source.n), source.bits, wide(shape->k), wide(shape->n));
}

int32_t run(const anynpu_quant_matmul_args& args, const Shape& shape) {
  Columns columns;
  if (!columns.allocate(shape.n)) return fail(ANYNPU_NO_MEMORY, "%s: no memory for %lld columns", kOp, wide(shape.n));
  const bool int4 = shape.weight.source.bits == 4;
  if (args.group_size == 0) {
    columns.load_scale(args.scale, args.y.dtype == ANYNPU_INT8 && !present(args.offset), false);
  }
  if (present(args.offset)) columns.load_offset(args.offset);
  const int64_t batches = product(shape.batch, shape.batch_axes);
  // One weight for all batches: their rows are the rows of one product.
  const bool one_weight = product(args.x2.shape, args.x2.ndim - 2) == 1 && args.bias.ndim != 3 &&
                          product(args.x1.shape, args.x1.ndim - 2) == batches;
  anynpu_tensor matrix = args.x1;
  if (!one_weight) {
    matrix.ndim = 2;
    std::copy(args.x1.shape + args.x1.ndim - 2, args.x1.shape + args.x1.ndim, matrix.shape);
    std::copy(args.x1.strides + args.x1.ndim - 2, args.x1.strides + args.x1.ndim, matrix.strides);
  }
  const int64_t element_bytes = dtype_bits(args.y.dtype) / 8;
  for (int64_t batch = 0; batch < (one_weight ? 1 : batches); ++batch) {
    const BatchOffsets offsets = one_weight ? BatchOffsets{} : batch_offsets(args, shape, batch);
    if (present(args.bias) && (batch == 0 || args.bias.ndim == 3)) {
      ANYNPU_TRY(columns.load_bias(kOp, args.bias, offsets.bias, shape.k));
    }
    WeightSource source = shape.weight.source;
    source.data += offsets.x2_bytes;
    Int8Problem problem = {};
    problem.rows = one_weight ? batches * shape.m : shape.m;
    problem.k = shape.k;
    problem.n = shape.n;
    problem.x = static_cast<const int8_t*>(args.x1.data) + offsets.x1;
    problem.x_view = &matrix;
    problem.y = static_cast<uint8_t*>(args.y.data) + batch * shape.m * shape.n * element_bytes;
    problem.y_dtype = args.y.dtype;
    columns.describe(&problem);
    if (present(args.pertoken_scale)) {
      problem.row_scale = static_cast<const float*>(args.pertoken_scale.data);
      problem.row_scale_count = shape.m;
      problem.row_scale_stride = args.pertoken_scale.strides[0];
    }
    ANYNPU_TRY(int4 ? run_int4_gemm(kOp, problem, {source, args.group_size, shape.scale})
                    : run_int8_gemm(kOp, problem, PlainWeight(source)));
  }
  return ANYNPU_OK;
}

}  // namespace
}  // namespace anynpu

using anynpu::check_data;
using anynpu::fail;

extern "C" int32_t anynpu_quant_matmul_check(const anynpu_quant_matmul_args* args, size_t* workspace_bytes) {
  if (args == nullptr || workspace_bytes == nullptr) return fail(ANYNPU_NULL_ARG, "quant_matmul: null argument");
  *workspace_bytes = 0;
  anynpu::Shape shape;
  return anynpu::check(*args, &shape);
}

extern "C" int32_t anynpu_quant_matmul(const anynpu_quant_matmul_args* args, void*, size_t) {
  if (args == nullptr) return fail(ANYNPU_NULL_ARG, "quant_matmul: null argument");
  anynpu::Shape shape;
  ANYNPU_TRY(anynpu::check(*args, &shape));
  ANYNPU_TRY(check_data("quant_matmul", "x1", args->x1));
  ANYNPU_TRY(check_data("quant_matmul", "x2", args->x2));
  ANYNPU_TRY(check_data("quant_matmul", "scale", args->scale));
  ANYNPU_TRY(check_data("quant_matmul", "offset", args->offset));
  ANYNPU_TRY(check_data("quant_matmul", "pertoken_scale", args->pertoken_scale));
  ANYNPU_TRY(check_data("quant_matmul", "bias", args->bias));
  ANYNPU_TRY(check_data("quant_matmul", "y", args->y));
  if (anynpu::is_prepacked(args->x2)) ANYNPU_TRY(anynpu::read_prepacked(args->x2, &shape));
  if (anynpu::element_count(args->y) == 0) return ANYNPU_OK;
  return anynpu::run(*args, shape);
}
