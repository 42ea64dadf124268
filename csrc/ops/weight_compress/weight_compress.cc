// SPDX-License-Identifier: Apache-2.0
// Lossless compression of int8 weights and its inverse. The format is csrc/codec and docs/formats.md.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <new>

#include "codec/decode.h"
#include "codec/encode.h"
#include "codec/stream.h"
#include "core/parallel.h"
#include "core/snapshot.h"
#include "core/tensor.h"

namespace anynpu {
namespace {

using codec::kBlockN;
using codec::kEntryBytes;

int32_t check_weight(const char* op, const anynpu_tensor& weight) {
  ANYNPU_TRY(check_required(op, "weight", weight));
  ANYNPU_TRY(check_dtype(op, "weight", weight, {ANYNPU_INT8}));
  if (weight.ndim != 2 || weight.format != ANYNPU_ND || element_count(weight) == 0) {
    return fail(ANYNPU_BAD_SHAPE, "%s: weight must be ND of shape (N, K), not empty, got %s", op, shape_text(weight));
  }
  return ANYNPU_OK;
}

codec::Geometry geometry_of(const anynpu_tensor& weight) { return {weight.shape[1], weight.shape[0]}; }

int32_t check_compress(const anynpu_weight_compress_args& args) {
  constexpr const char* op = "weight_compress";
  ANYNPU_TRY(check_weight(op, args.weight));
  const codec::Geometry geometry = geometry_of(args.weight);
  ANYNPU_TRY(codec::check_geometry(op, geometry));
  ANYNPU_TRY(codec::check_bytes(op, "stream", args.stream, codec::most_bytes(geometry)));
  ANYNPU_TRY(codec::check_bytes(op, "index", args.index, geometry.blocks() * kEntryBytes));
  ANYNPU_TRY(check_required(op, "stream_bytes", args.stream_bytes));
  if (args.stream_bytes.dtype != ANYNPU_INT64 || args.stream_bytes.format != ANYNPU_ND ||
      element_count(args.stream_bytes) != 1) {
    return fail(ANYNPU_BAD_SHAPE, "%s: stream_bytes must be one int64 in ND, got %s of shape %s", op,
                dtype_name(args.stream_bytes.dtype), shape_text(args.stream_bytes));
  }
  return ANYNPU_OK;
}

// Where the payload of a block may be written before the earlier ones are known: each of them may be stored raw.
int64_t first_slot(const codec::Geometry& geometry, int64_t block) {
  const codec::BlockShape shape = codec::block_shape(geometry, block);
  return shape.n * ((geometry.k + 3) / 4 * 4) + shape.panels() * 64 * shape.k;
}

// Closes the gaps between the parts that threads have written, each without gaps from the slot of its first block.
int64_t join_parts(const codec::Geometry& geometry, const uint8_t* index, const uint8_t* begins_part, uint8_t* stream) {
  int64_t used = 0, from = 0, bytes = 0;
  const auto move_part = [&] {
    if (used != from) std::memmove(stream + used, stream + from, static_cast<size_t>(bytes));
    used += bytes;
  };
  for (int64_t block = 0; block < geometry.blocks(); ++block) {
    if (begins_part[block]) {
      move_part();
      from = first_slot(geometry, block);
      bytes = 0;
    }
    bytes += 8 * int64_t{codec::read_entry(index, block).words};
  }
  move_part();
  return used;
}

int32_t compress(const anynpu_weight_compress_args& args) {
  const anynpu_tensor& weight = args.weight;
  const codec::Matrix matrix = {static_cast<const int8_t*>(weight.data), weight.strides[0], weight.strides[1],
                                geometry_of(weight)};
  auto* stream = static_cast<uint8_t*>(args.stream.data);
  auto* index = static_cast<uint8_t*>(args.index.data);
  const int64_t blocks = matrix.geometry.blocks();
  const std::unique_ptr<uint8_t[]> begins_part(new (std::nothrow) uint8_t[static_cast<size_t>(blocks)]());
  std::atomic<bool> no_memory{begins_part == nullptr};
  parallel_for(no_memory.load() ? 0 : blocks, 1, [&](int64_t begin, int64_t end) {
    codec::Encoder encoder;
    if (!encoder.ok()) no_memory.store(true);
    begins_part[static_cast<size_t>(begin)] = 1;
    uint8_t* payload = stream + first_slot(matrix.geometry, begin);
    for (int64_t block = begin; block < end && encoder.ok(); ++block) {
      const codec::Entry entry = encoder.encode_block(matrix, block, payload);
      std::memcpy(index + block * kEntryBytes, &entry, sizeof(entry));
      payload += 8 * int64_t{entry.words};
    }
  });
  if (no_memory.load()) return fail(ANYNPU_NO_MEMORY, "weight_compress: no memory for the encoder");
  *static_cast<int64_t*>(args.stream_bytes.data) = join_parts(matrix.geometry, index, begins_part.get(), stream);
  return ANYNPU_OK;
}

int32_t check_decompress(const anynpu_weight_decompress_args& args) {
  constexpr const char* op = "weight_decompress";
  ANYNPU_TRY(check_weight(op, args.weight));
  if (!is_contiguous(args.weight)) return fail(ANYNPU_BAD_SHAPE, "%s: weight must be contiguous", op);
  const codec::Geometry geometry = geometry_of(args.weight);
  return codec::check_stream(op, geometry, args.stream, args.index);
}

int32_t decompress(const anynpu_weight_decompress_args& args) {
  constexpr const char* op = "weight_decompress";
  codec::Stream stream;
  ANYNPU_TRY(codec::open_stream(op, geometry_of(args.weight), args.stream, args.index, &stream));
  const int64_t blocks = stream.geometry.blocks();
  const Snapshot snapshot(args.weight.data, element_count(args.weight), args.weight_is_scratch != 0);
  if (!snapshot.ok()) return fail(ANYNPU_NO_MEMORY, "%s: no memory to guard the output", op);
  std::atomic<int64_t> bad{blocks};  // the first one, whatever the order of the threads
  parallel_for(blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      if (codec::decode_to_rows(stream, block, static_cast<int8_t*>(args.weight.data)) == nullptr) continue;
      int64_t first = bad.load();
      while (block < first && !bad.compare_exchange_weak(first, block)) {
      }
    }
    codec::kernel().fence();
  });
  if (bad.load() < blocks) {
    snapshot.restore();
    return codec::report_block(op, stream, bad.load());
  }
  return ANYNPU_OK;
}

}  // namespace
}  // namespace anynpu

using anynpu::check_data;
using anynpu::fail;

extern "C" int32_t anynpu_weight_compress_check(const anynpu_weight_compress_args* args, size_t* workspace_bytes) {
  if (args == nullptr || workspace_bytes == nullptr) return fail(ANYNPU_NULL_ARG, "weight_compress: null argument");
  *workspace_bytes = 0;
  return anynpu::check_compress(*args);
}

extern "C" int32_t anynpu_weight_compress(const anynpu_weight_compress_args* args, void*, size_t) {
  size_t workspace_bytes = 0;
  ANYNPU_TRY(anynpu_weight_compress_check(args, &workspace_bytes));
  ANYNPU_TRY(check_data("weight_compress", "weight", args->weight));
  ANYNPU_TRY(check_data("weight_compress", "stream", args->stream));
  ANYNPU_TRY(check_data("weight_compress", "index", args->index));
  ANYNPU_TRY(check_data("weight_compress", "stream_bytes", args->stream_bytes));
  return anynpu::compress(*args);
}

extern "C" int32_t anynpu_weight_decompress_check(const anynpu_weight_decompress_args* args, size_t* workspace_bytes) {
  if (args == nullptr || workspace_bytes == nullptr) return fail(ANYNPU_NULL_ARG, "weight_decompress: null argument");
  *workspace_bytes = 0;
  return anynpu::check_decompress(*args);
}

extern "C" int32_t anynpu_weight_decompress(const anynpu_weight_decompress_args* args, void*, size_t) {
  size_t workspace_bytes = 0;
  ANYNPU_TRY(anynpu_weight_decompress_check(args, &workspace_bytes));
  ANYNPU_TRY(check_data("weight_decompress", "stream", args->stream));
  ANYNPU_TRY(check_data("weight_decompress", "index", args->index));
  ANYNPU_TRY(check_data("weight_decompress", "weight", args->weight));
  return anynpu::decompress(*args);
}
