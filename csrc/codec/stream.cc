// SPDX-License-Identifier: Apache-2.0
#include "codec/stream.h"

#include <memory>
#include <new>

#include "core/scratch.h"

namespace anynpu::codec {
namespace {

constexpr int64_t kLargestAxis = int64_t{1} << 30;

int32_t check_byte_tensor(const char* op, const char* name, const anynpu_tensor& tensor) {
  ANYNPU_TRY(check_required(op, name, tensor));
  if (tensor.dtype != ANYNPU_INT8 && tensor.dtype != ANYNPU_UINT8) {
    return fail(ANYNPU_BAD_DTYPE, "%s: %s must be int8, got %s", op, name, dtype_name(tensor.dtype));
  }
  if (tensor.ndim != 1 || tensor.format != ANYNPU_ND || !is_contiguous(tensor)) {
    return fail(ANYNPU_BAD_SHAPE, "%s: %s must be ND with one axis, contiguous, got shape %s", op, name,
                shape_text(tensor));
  }
  return ANYNPU_OK;
}

}  // namespace

int64_t most_bytes(const Geometry& geometry) {
  return (geometry.n + kPanelColumns - 1) / kPanelColumns * kPanelColumns * ((geometry.k + 3) / 4 * 4);
}

int32_t check_geometry(const char* op, const Geometry& geometry) {
  if (geometry.k >= 1 && geometry.n >= 1 && geometry.k <= kLargestAxis && geometry.n <= kLargestAxis) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE, "%s: N and K of a compressed weight must be in [1, 2^30], got N %lld and K %lld", op,
              static_cast<long long>(geometry.n), static_cast<long long>(geometry.k));
}

int32_t check_bytes(const char* op, const char* name, const anynpu_tensor& tensor, int64_t bytes) {
  ANYNPU_TRY(check_byte_tensor(op, name, tensor));
  if (tensor.shape[0] == bytes) return ANYNPU_OK;
  return fail(ANYNPU_BAD_SHAPE, "%s: %s must have %lld bytes, got %lld", op, name, static_cast<long long>(bytes),
              static_cast<long long>(tensor.shape[0]));
}

int32_t check_stream(const char* op, const Geometry& geometry, const anynpu_tensor& stream,
                     const anynpu_tensor& index) {
  ANYNPU_TRY(check_geometry(op, geometry));
  ANYNPU_TRY(check_byte_tensor(op, "stream", stream));
  ANYNPU_TRY(check_byte_tensor(op, "index", index));
  const int64_t expected = geometry.blocks() * kEntryBytes;
  if (index.shape[0] != expected) {
    return fail(ANYNPU_BAD_SHAPE,
                "%s: index must have ceil(K / 256) * ceil(N / 128) * 8 = %lld * %lld * 8 = %lld bytes, got %lld "
                "(K %lld, N %lld)",
                op, static_cast<long long>(geometry.k_blocks()), static_cast<long long>(geometry.n_blocks()),
                static_cast<long long>(expected), static_cast<long long>(index.shape[0]),
                static_cast<long long>(geometry.k), static_cast<long long>(geometry.n));
  }
  if (stream.shape[0] > most_bytes(geometry)) {
    return fail(ANYNPU_BAD_SHAPE, "%s: stream must have at most %lld bytes (K %lld, N %lld, padded), got %lld", op,
                static_cast<long long>(most_bytes(geometry)), static_cast<long long>(geometry.k),
                static_cast<long long>(geometry.n), static_cast<long long>(stream.shape[0]));
  }
  return ANYNPU_OK;
}

int32_t open_stream(const char* op, const Geometry& geometry, const anynpu_tensor& stream, const anynpu_tensor& index,
                    Stream* opened) {
  auto* offsets =
      static_cast<int64_t*>(scratch(ScratchSlot::fallback, static_cast<size_t>(geometry.blocks()) * sizeof(int64_t)));
  if (offsets == nullptr) return fail(ANYNPU_NO_MEMORY, "%s: no memory for the block offsets", op);
  *opened = {static_cast<const uint8_t*>(stream.data), stream.shape[0], static_cast<const uint8_t*>(index.data),
             offsets, geometry};
  int64_t block = 0;
  const char* error = find_blocks(*opened, offsets, &block);
  if (error == nullptr) return ANYNPU_OK;
  return fail(
      ANYNPU_BAD_VALUE,
      "%s: entry %lld of the index %s; the weight was not compressed by anynpu for this N and K (format c8), or "
      "is damaged",
      op, static_cast<long long>(block), error);
}

int32_t report_block(const char* op, const Stream& stream, int64_t block) {
  std::unique_ptr<uint8_t[]> values(new (std::nothrow) uint8_t[kMaxBlockValues]);
  const char* error = values ? decode_block(stream, block, values.get()) : nullptr;
  const BlockShape shape = block_shape(stream.geometry, block);
  return fail(ANYNPU_BAD_VALUE, "%s: block %lld of the compressed weight (N from %lld, K from %lld) is damaged: %s", op,
              static_cast<long long>(block), static_cast<long long>(shape.n), static_cast<long long>(shape.k),
              error == nullptr ? "it changed during the call" : error);
}

}  // namespace anynpu::codec
