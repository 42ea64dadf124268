// SPDX-License-Identifier: Apache-2.0
// Compressed matrices as tensors: the checks and messages that operators share.
#pragma once

#include "codec/decode.h"
#include "core/tensor.h"

namespace anynpu::codec {

// Bytes of the largest stream: every block stored as it is.
int64_t most_bytes(const Geometry& geometry);
int32_t check_geometry(const char* op, const Geometry& geometry);
// `tensor` is int8 (or uint8), 1-D, contiguous, of `bytes` bytes.
int32_t check_bytes(const char* op, const char* name, const anynpu_tensor& tensor, int64_t bytes);
// What can be said of a compressed matrix without its data.
int32_t check_stream(const char* op, const Geometry& geometry, const anynpu_tensor& stream, const anynpu_tensor& index);
// Checks the index; the offsets live in the scratch of the calling thread.
int32_t open_stream(const char* op, const Geometry& geometry, const anynpu_tensor& stream, const anynpu_tensor& index,
                    Stream* opened);
// The error of a block that decode_block refuses.
int32_t report_block(const char* op, const Stream& stream, int64_t block);

}  // namespace anynpu::codec
