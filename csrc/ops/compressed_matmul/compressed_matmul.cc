// SPDX-License-Identifier: Apache-2.0
// quant_matmul with a weight that is decoded block by block into the operand of the product.
#include <atomic>

#include "codec/stream.h"
#include "core/snapshot.h"
#include "core/strided.h"
#include "ops/quant_matmul/columns.h"
#include "ops/quant_matmul/int8_gemm.h"

namespace anynpu {
namespace {

constexpr const char* kOp = "compressed_matmul";

int32_t check_dtypes(const anynpu_compressed_matmul_args& args) {
  ANYNPU_TRY(check_dtype(kOp, "x", args.x, {ANYNPU_INT8}));
  ANYNPU_TRY(check_dtype(kOp, "bias", args.bias, {ANYNPU_INT32, ANYNPU_FLOAT32}));
  ANYNPU_TRY(check_dtype(kOp, "scale", args.scale, {ANYNPU_INT64, ANYNPU_UINT64, ANYNPU_FLOAT32}));
  ANYNPU_TRY(check_dtype(kOp, "pertoken_scale", args.pertoken_scale, {ANYNPU_FLOAT32}));
  return check_dtype(kOp, "y", args.y, {ANYNPU_FLOAT16, ANYNPU_BFLOAT16, ANYNPU_FLOAT32});
}

// (count) or (1, count).
bool is_row(const anynpu_tensor& tensor, int64_t count) {
  return tensor.format == ANYNPU_ND && (tensor.ndim == 1 || (tensor.ndim == 2 && tensor.shape[0] == 1)) &&
         tensor.shape[tensor.ndim - 1] == count;
}

int32_t check(const anynpu_compressed_matmul_args& args, codec::Geometry* geometry) {
  ANYNPU_TRY(check_required(kOp, "x", args.x));
  ANYNPU_TRY(check_tensor(kOp, "bias", args.bias));
  ANYNPU_TRY(check_required(kOp, "scale", args.scale));
  ANYNPU_TRY(check_tensor(kOp, "pertoken_scale", args.pertoken_scale));
  ANYNPU_TRY(check_required(kOp, "y", args.y));
  ANYNPU_TRY(check_dtypes(args));
  const anynpu_tensor &x = args.x, &y = args.y;
  if (x.ndim != 2 || x.format != ANYNPU_ND)
    return fail(ANYNPU_BAD_SHAPE, "%s: x must be ND of shape (M, K), got %s", kOp, shape_text(x));
  if (y.ndim != 2 || y.format != ANYNPU_ND || y.shape[0] != x.shape[0] || !is_contiguous(y)) {
    return fail(ANYNPU_BAD_SHAPE, "%s: y must be ND, contiguous, of shape (M, N) with M = %lld, got %s", kOp,
                wide(x.shape[0]), shape_text(y));
  }
  *geometry = {x.shape[1], y.shape[1]};
  if (geometry->k > kMostInt8K) {
    return fail(ANYNPU_BAD_SHAPE, "%s: K must be in [1, %lld] so that int32 sums are exact, got %lld", kOp,
                wide(kMostInt8K), wide(geometry->k));
  }
  ANYNPU_TRY(check_strides(kOp, "x", x, Access::read));
  if (!is_row(args.scale, 1) && !is_row(args.scale, geometry->n)) {
    return fail(ANYNPU_BAD_SHAPE, "%s: scale must have shape (1, 1) or (1, N) = (1, %lld), got %s", kOp,
                wide(geometry->n), shape_text(args.scale));
  }
  if (present(args.bias) && !is_row(args.bias, geometry->n)) {
    return fail(ANYNPU_BAD_SHAPE, "%s: bias must have shape (N,) or (1, N) = (1, %lld), got %s", kOp, wide(geometry->n),
                shape_text(args.bias));
  }
  const anynpu_tensor& token = args.pertoken_scale;
  if (present(token) && (token.ndim != 1 || token.shape[0] != x.shape[0] || token.format != ANYNPU_ND)) {
    return fail(ANYNPU_BAD_SHAPE, "%s: pertoken_scale must have shape (M,) = (%lld,), got %s", kOp, wide(x.shape[0]),
                shape_text(token));
  }
  return codec::check_stream(kOp, *geometry, args.stream, args.index);
}

static_assert(codec::kBlockK == kSpan && codec::kPanelColumns == kPanelColumns,
              "a block decodes to the panels of one span of k");

class CompressedWeight final : public PanelSource {
 public:
  explicit CompressedWeight(const codec::Stream& stream) : stream_(stream), bad_(stream.geometry.blocks()) {}
  bool fill(const WeightPart& part, uint8_t* panels) const override { return fill_nibbles(part, panels, nullptr); }
  bool fill_nibbles(const WeightPart& part, uint8_t* panels, codec::Nibbles* nibbles) const override {
    const int64_t block = part.n / codec::kBlockN * stream_.geometry.k_blocks() + part.k / codec::kBlockK;
    if (codec::decode_to_nibbles(stream_, block, panels, nibbles) == nullptr) return true;
    int64_t first = bad_.load();
    while (block < first && !bad_.compare_exchange_weak(first, block)) {
    }
    return false;
  }
  int64_t bad_block() const { return bad_.load(); }

 private:
  const codec::Stream& stream_;
  mutable std::atomic<int64_t> bad_;
};

int32_t run(const anynpu_compressed_matmul_args& args, const codec::Geometry& geometry) {
  codec::Stream stream;
  ANYNPU_TRY(codec::open_stream(kOp, geometry, args.stream, args.index, &stream));
  Columns columns;
  if (!columns.allocate(geometry.n))
    return fail(ANYNPU_NO_MEMORY, "%s: no memory for %lld columns", kOp, wide(geometry.n));
  columns.load_scale(args.scale, false, args.scale_19_bits != 0);
  if (present(args.bias)) ANYNPU_TRY(columns.load_bias(kOp, args.bias, 0, geometry.k));
  const int64_t rows = args.x.shape[0];
  // Damage is found after earlier blocks have been multiplied.
  const Snapshot snapshot(args.y.data, rows * geometry.n * (dtype_bits(args.y.dtype) / 8), args.y_is_scratch != 0);
  if (!snapshot.ok()) return fail(ANYNPU_NO_MEMORY, "%s: no memory to guard the output", kOp);
  Int8Problem problem = {};
  problem.rows = rows;
  problem.k = geometry.k;
  problem.n = geometry.n;
  problem.x = static_cast<const int8_t*>(args.x.data);
  problem.x_view = &args.x;
  problem.y = args.y.data;
  problem.y_dtype = args.y.dtype;
  columns.describe(&problem);
  if (present(args.pertoken_scale)) {
    problem.row_scale = static_cast<const float*>(args.pertoken_scale.data);
    problem.row_scale_count = rows;
    problem.row_scale_stride = args.pertoken_scale.strides[0];
  }
  const CompressedWeight weight(stream);
  const int32_t status = run_int8_gemm(kOp, problem, weight);
  if (status != ANYNPU_BAD_VALUE) return status;
  snapshot.restore();
  return codec::report_block(kOp, stream, weight.bad_block());
}

}  // namespace
}  // namespace anynpu

using anynpu::check_data;
using anynpu::fail;

extern "C" int32_t anynpu_compressed_matmul_check(const anynpu_compressed_matmul_args* args, size_t* workspace_bytes) {
  if (args == nullptr || workspace_bytes == nullptr) return fail(ANYNPU_NULL_ARG, "compressed_matmul: null argument");
  *workspace_bytes = 0;
  anynpu::codec::Geometry geometry;
  return anynpu::check(*args, &geometry);
}

extern "C" int32_t anynpu_compressed_matmul(const anynpu_compressed_matmul_args* args, void*, size_t) {
  if (args == nullptr) return fail(ANYNPU_NULL_ARG, "compressed_matmul: null argument");
  anynpu::codec::Geometry geometry;
  ANYNPU_TRY(anynpu::check(*args, &geometry));
  ANYNPU_TRY(check_data("compressed_matmul", "x", args->x));
  ANYNPU_TRY(check_data("compressed_matmul", "stream", args->stream));
  ANYNPU_TRY(check_data("compressed_matmul", "index", args->index));
  ANYNPU_TRY(check_data("compressed_matmul", "bias", args->bias));
  ANYNPU_TRY(check_data("compressed_matmul", "scale", args->scale));
  ANYNPU_TRY(check_data("compressed_matmul", "pertoken_scale", args->pertoken_scale));
  ANYNPU_TRY(check_data("compressed_matmul", "y", args->y));
  return anynpu::element_count(args->y) == 0 ? ANYNPU_OK : anynpu::run(*args, geometry);
}
