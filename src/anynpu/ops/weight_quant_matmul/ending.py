# SPDX-License-Identifier: Apache-2.0
"""What the CUDA kernels of weight_quant_matmul share: their tiles, reading scales, and what follows the sums."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from anynpu._triton import encoded_offset, encoded_scale, half_to_even, rounded, start_next, tile_of, wait_for_previous

# Two powers of two whose last place is 1, plus 8: four bits put into that place are int4.
MAGIC = {torch.float16: 0x64086408, torch.bfloat16: 0x43084308}


@triton.jit
def factors_of(ptr, group, column, N, group_stride, column_stride):
    """A row of scales or offsets in float32; an int64 scale holds one in its low half."""
    values = tl.load(ptr + group * group_stride + column.to(tl.int64) * column_stride, mask=column < N, other=0)
    return encoded_scale(values) if values.dtype == tl.int64 else values.to(tl.float32)


@triton.jit
def ended(value, column, inside, bias_ptr, quant_scale_ptr, quant_offset_ptr, bias_stride, quant_scale_stride,
          quant_offset_stride, BIAS: tl.constexpr, QUANT: tl.constexpr, QUANT_OFFSET: tl.constexpr,
          dtype: tl.constexpr):  # fmt: skip
    """Results out of sums: bias added, quantised, rounded. ``column`` and ``inside`` have their shape or broadcast."""
    if BIAS:
        value += tl.load(bias_ptr + column * bias_stride, mask=inside, other=0.0).to(tl.float32)
    if QUANT:
        stored = tl.load(quant_scale_ptr + column * quant_scale_stride, mask=inside, other=0)
        if stored.dtype == tl.int64:
            value = value * encoded_scale(stored) + encoded_offset(stored)
        else:
            value *= (stored.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)  # its upper 19 bits
        if QUANT_OFFSET:
            offset = tl.load(quant_offset_ptr + column * quant_offset_stride, mask=inside, other=0.0)
            value += half_to_even(tl.minimum(tl.maximum(offset, -256.0), 255.0))
    return rounded(value, dtype)


@triton.jit
def _finish(y, value, column, inside, bias_ptr, quant_scale_ptr, quant_offset_ptr, bias_stride, quant_scale_stride,
            quant_offset_stride, BIAS: tl.constexpr, QUANT: tl.constexpr, QUANT_OFFSET: tl.constexpr):  # fmt: skip
    """Adds the bias, quantises and stores; ``column`` has the shape of ``value`` or broadcasts to it."""
    value = ended(value, column, inside, bias_ptr, quant_scale_ptr, quant_offset_ptr, bias_stride, quant_scale_stride,
                  quant_offset_stride, BIAS, QUANT, QUANT_OFFSET, y.dtype.scalar.element_ty)  # fmt: skip
    tl.store(y, value, mask=inside)


@triton.jit
def finish_or_keep(y_ptr, parts_ptr, place, part, count, value, column, inside, bias_ptr, quant_scale_ptr,
                   quant_offset_ptr, bias_stride, quant_scale_stride, quant_offset_stride, BIAS: tl.constexpr,
                   QUANT: tl.constexpr, QUANT_OFFSET: tl.constexpr, PARTED: tl.constexpr):  # fmt: skip
    """Finishes the elements of y at ``place``, or PARTED keeps their sums over this part of K."""
    if not PARTED:
        _finish(y_ptr + place, value, column, inside, bias_ptr, quant_scale_ptr, quant_offset_ptr, bias_stride,
                quant_scale_stride, quant_offset_stride, BIAS, QUANT, QUANT_OFFSET)  # fmt: skip
    else:
        tl.store(parts_ptr + part.to(tl.int64) * count + place, value, mask=inside)


@triton.jit
def own_tile(M, N, parts, BM: tl.constexpr, BN: tl.constexpr):
    """(batch, part of K, first row, first column) of this program's tile of y."""
    row_tiles, column_tiles = tl.cdiv(M, BM), tl.cdiv(N, BN)
    number, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    batch = (number // (row_tiles * column_tiles)).to(tl.int64)
    row_tile, column_tile = tile_of(number % (row_tiles * column_tiles), row_tiles, column_tiles)
    return batch, part, row_tile * BM, column_tile * BN


@triton.jit(do_not_specialize=["count", "parts"])
def add_parts_kernel(parts_ptr, bias_ptr, quant_scale_ptr, quant_offset_ptr, y_ptr, parts, count, N, bias_stride,
                     quant_scale_stride, quant_offset_stride, BIAS: tl.constexpr, QUANT: tl.constexpr,
                     QUANT_OFFSET: tl.constexpr, OVERLAP: tl.constexpr, MOST_PARTS: tl.constexpr,
                     BLOCK: tl.constexpr):  # fmt: skip
    """Adds the parts, always in the same order, so that the result is the same bits in every run, and finishes."""
    start_next(OVERLAP)
    wait_for_previous(OVERLAP)
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    part, inside = tl.arange(0, MOST_PARTS).to(tl.int64)[:, None], place < count
    values = tl.load(parts_ptr + part * count + place[None, :], mask=(part < parts) & inside[None, :], other=0.0)
    _finish(y_ptr + place, tl.sum(values, axis=0), place % N, inside, bias_ptr, quant_scale_ptr, quant_offset_ptr,
            bias_stride, quant_scale_stride, quant_offset_stride, BIAS, QUANT, QUANT_OFFSET)  # fmt: skip
