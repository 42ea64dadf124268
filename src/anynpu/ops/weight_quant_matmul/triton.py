# SPDX-License-Identifier: Apache-2.0
"""CUDA kernels of weight_quant_matmul and weight_quant_prepack.

Integers go into the tensor cores as they are: int4 and int8 are exact in float16 and bfloat16, so products lose
nothing, and scale and offset are applied to the float32 sums of each group. Scaling the weights first would round each.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import torch
import triton
import triton.language as tl

from anynpu import _device_errors
from anynpu._triton import (
    ceil_divide,
    dot,
    encoded_offset,
    encoded_scale,
    half_to_even,
    int4_to,
    launch,
    nibbles,
    report,
    rounded,
    tile,
    tile_of,
)
from anynpu.ops.weight_quant_matmul import spec

_HEADER = _device_errors.new_rule(
    spec.MATMUL, "the header of a prepacked weight", "must be what weight_quant_prepack writes for this K and N"
)
_CONFIGURATIONS = Path(__file__).with_name("triton_configurations.json")
_LEAST_STEPS = 4  # of a part of K: shorter ones cost more than they save
_SUM_BLOCK = 1024  # elements of y that a program adds the parts of

# How a weight is stored: plain int8; int32 words of eight int4 along N or along K; formats w4p32 and w8p32.
INT8, WORDS_N, WORDS_K, CELLS4, CELLS8 = (tl.constexpr(number) for number in range(5))


@triton.jit
def _cells(blob, first_k, first_column, K, N, BITS: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr):
    """Integers [BK, BN] of format w4p32 (only their low four bits count) or w8p32."""
    k, column = (first_k + tl.arange(0, BK))[:, None], (first_column + tl.arange(0, BN))[None, :]
    cell = (column // 32).to(tl.int64) * tl.cdiv(K, 4) + k // 4
    inside = (k < K) & (column < N)
    if BITS == 8:
        return tl.load(blob + (64 + cell * 128 + column % 32 * 4 + k % 4), mask=inside, other=128).to(tl.int32) - 128
    else:
        byte = tl.load(blob + (64 + cell * 64 + column % 16 * 4 + k % 4), mask=inside, other=0x88).to(tl.int32)
        return (byte >> (column % 32 // 16 * 4)) ^ 8


@triton.jit
def _weight_tile(weight, first_k, first_column, K, N, k_stride, column_stride, STORED: tl.constexpr,
                 WHOLE: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr, dtype: tl.constexpr):  # fmt: skip
    """Integers [BK, BN] as dtype; the strides are those of the stored elements."""
    if STORED == WORDS_N:
        return int4_to(
            nibbles(weight, first_k, first_column, K, N, k_stride, column_stride, False, WHOLE, BK, BN), dtype
        )
    elif STORED == WORDS_K:
        return int4_to(
            nibbles(weight, first_k, first_column, K, N, k_stride, column_stride, True, WHOLE, BK, BN), dtype
        )
    elif STORED == CELLS4:
        return int4_to(_cells(weight, first_k, first_column, K, N, 4, BK, BN), dtype)
    elif STORED == CELLS8:
        return _cells(weight, first_k, first_column, K, N, 8, BK, BN).to(tl.float32).to(dtype)
    else:
        bytes = tile(weight, first_k, first_column, K, N, k_stride, column_stride, WHOLE, False, BK, BN)
        return bytes.to(tl.float32).to(dtype)


@triton.jit
def _factors(ptr, group, column, N, group_stride, column_stride):
    """A row of scales or offsets in float32; an int64 scale holds one in its low half."""
    values = tl.load(ptr + group * group_stride + column.to(tl.int64) * column_stride, mask=column < N, other=0)
    return encoded_scale(values) if values.dtype == tl.int64 else values.to(tl.float32)


@triton.jit
def _finish(y, value, column, inside, bias_ptr, quant_scale_ptr, quant_offset_ptr, bias_stride, quant_scale_stride,
            quant_offset_stride, BIAS: tl.constexpr, QUANT: tl.constexpr, QUANT_OFFSET: tl.constexpr):  # fmt: skip
    """Adds the bias, quantises and stores; ``column`` has the shape of ``value`` or broadcasts to it."""
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
    tl.store(y, rounded(value, y.dtype.scalar.element_ty), mask=inside)


@triton.jit
def _header_byte(place, K, N, BITS: tl.constexpr):
    """Byte ``place`` of the header of format w4p32 or w8p32."""
    magic: tl.constexpr = 0x3370347755504E41 if BITS == 4 else 0x3370387755504E41  # ANPUw4p3, ANPUw8p3
    field = place // 8
    word = tl.where(field == 0, magic, tl.where(field == 1, (BITS << 32) + 1, 0))
    word = tl.where(field == 2, K, tl.where(field == 3, N, word))
    return (word >> (8 * (place % 8))) & 255


@triton.jit
def _check_header(blob, K, N, error_ptr, RULE: tl.constexpr, BITS: tl.constexpr):
    if tl.program_id(0) == 0:
        place = tl.arange(0, 32)
        report(error_ptr, RULE, tl.load(blob + place).to(tl.int64) != _header_byte(place, K, N, BITS), place)


@triton.jit
def _matmul_kernel(x_ptr, weight_ptr, scale_ptr, offset_ptr, bias_ptr, quant_scale_ptr, quant_offset_ptr, y_ptr,
                   parts_ptr, error_ptr, M, N, K, count, group_size, part_k, x_batch, x_row, x_k, weight_batch,
                   weight_k, weight_column, scale_group, scale_column, offset_group, offset_column, bias_stride,
                   quant_scale_stride, quant_offset_stride, RULE: tl.constexpr, STORED: tl.constexpr,
                   WHOLE: tl.constexpr, GROUPS: tl.constexpr, OFFSET: tl.constexpr, BIAS: tl.constexpr,
                   QUANT: tl.constexpr, QUANT_OFFSET: tl.constexpr, PARTS: tl.constexpr, BM: tl.constexpr,
                   BN: tl.constexpr, BK: tl.constexpr):  # fmt: skip
    """One tile of y, or with several PARTS its sums over a part of K. BK divides part_k, group_size and (WHOLE) K."""
    row_tiles, column_tiles = tl.cdiv(M, BM), tl.cdiv(N, BN)
    number, part = tl.program_id(0) // PARTS, tl.program_id(0) % PARTS
    batch = (number // (row_tiles * column_tiles)).to(tl.int64)
    row_tile, column_tile = tile_of(number % (row_tiles * column_tiles), row_tiles, column_tiles)
    first_row, first_column = row_tile * BM, column_tile * BN
    row, column = first_row + tl.arange(0, BM), first_column + tl.arange(0, BN)
    x, weight = x_ptr + batch * x_batch, weight_ptr + batch * weight_batch
    if STORED == CELLS4 or STORED == CELLS8:
        _check_header(weight, K, N, error_ptr, RULE, 4 if STORED == CELLS4 else 8)
    sums, row_sums = tl.zeros((BM, BN), tl.float32), tl.zeros((BM,), tl.float32)
    for step in range(0, tl.cdiv(tl.minimum(part_k, K - part * part_k), BK)):
        first_k = part * part_k + step * BK
        a = tile(x, first_row, first_k, M, K, x_row, x_k, False, WHOLE, BM, BK)
        b = _weight_tile(weight, first_k, first_column, K, N, weight_k, weight_column, STORED, WHOLE, BK, BN, a.dtype)
        if OFFSET:
            step_row_sums = tl.sum(a.to(tl.float32), axis=1)
        if GROUPS:
            group = first_k // group_size
            products = dot(a, b, tl.zeros((BM, BN), tl.float32))
            if OFFSET:
                offsets = _factors(offset_ptr, group, column, N, offset_group, offset_column)
                products += step_row_sums[:, None] * offsets[None, :]
            sums += products * _factors(scale_ptr, group, column, N, scale_group, scale_column)[None, :]
        else:
            sums = dot(a, b, sums)
            if OFFSET:
                row_sums += step_row_sums
    if not GROUPS:
        if OFFSET:
            sums += row_sums[:, None] * _factors(offset_ptr, 0, column, N, offset_group, offset_column)[None, :]
        sums *= _factors(scale_ptr, 0, column, N, scale_group, scale_column)[None, :]
    inside = (row < M)[:, None] & (column < N)[None, :]
    place = (batch * M + row)[:, None] * N + column[None, :]
    if PARTS == 1:
        _finish(y_ptr + place, sums, column[None, :], inside, bias_ptr, quant_scale_ptr, quant_offset_ptr, bias_stride,
                quant_scale_stride, quant_offset_stride, BIAS, QUANT, QUANT_OFFSET)  # fmt: skip
    else:
        tl.store(parts_ptr + part.to(tl.int64) * count + place, sums, mask=inside)


@triton.jit
def _add_parts_kernel(parts_ptr, bias_ptr, quant_scale_ptr, quant_offset_ptr, y_ptr, count, N, bias_stride,
                      quant_scale_stride, quant_offset_stride, BIAS: tl.constexpr, QUANT: tl.constexpr,
                      QUANT_OFFSET: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Adds the parts in their order, so that the result is the same bits in every run, and finishes."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    value = tl.zeros((BLOCK,), tl.float32)
    for part in tl.static_range(PARTS):
        value += tl.load(parts_ptr + part * count + place, mask=inside, other=0.0)
    _finish(y_ptr + place, value, place % N, inside, bias_ptr, quant_scale_ptr, quant_offset_ptr, bias_stride,
            quant_scale_stride, quant_offset_stride, BIAS, QUANT, QUANT_OFFSET)  # fmt: skip


@triton.jit
def _element(weight, k, column, inside, k_stride, column_stride, STORED: tl.constexpr):
    """One stored integer for each k and column."""
    if STORED == INT8:
        return tl.load(weight + k * k_stride + column * column_stride, mask=inside, other=0).to(tl.int32)
    elif STORED == WORDS_N:
        word = tl.load(weight + k * k_stride + column // 8 * column_stride, mask=inside, other=0)
        return ((word >> (column % 8 * 4).to(tl.int32) & 15) ^ 8) - 8
    else:
        word = tl.load(weight + k // 8 * k_stride + column * column_stride, mask=inside, other=0)
        return ((word >> (k % 8 * 4).to(tl.int32) & 15) ^ 8) - 8


@triton.jit
def _prepack_kernel(weight_ptr, blob_ptr, K, N, count, k_stride, column_stride, STORED: tl.constexpr,
                    BLOCK: tl.constexpr):  # fmt: skip
    """BLOCK bytes of the cells; the first program writes the header too."""
    bits: tl.constexpr = 8 if STORED == INT8 else 4
    width: tl.constexpr = 32 if STORED == INT8 else 16
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    cell, within = place // (4 * width), place % (4 * width)
    k = cell % tl.cdiv(K, 4) * 4 + within % 4
    column = cell // tl.cdiv(K, 4) * 32 + within // 4
    low = _element(weight_ptr, k, column, (k < K) & (column < N), k_stride, column_stride, STORED)
    byte = low + 128
    if bits == 4:
        high = _element(weight_ptr, k, column + 16, (k < K) & (column + 16 < N), k_stride, column_stride, STORED)
        byte = (low + 8) | ((high + 8) << 4)
    tl.store(blob_ptr + 64 + place, byte.to(tl.uint8), mask=place < count)
    if tl.program_id(0) == 0:
        header = tl.arange(0, 64)
        tl.store(blob_ptr + header, _header_byte(header, K, N, bits).to(tl.uint8))


def weight_quant_matmul(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    offset: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    quant_scale: torch.Tensor | None = None,
    quant_offset: torch.Tensor | None = None,
    group_size: int = 0,
    inner_precise: int = 0,
    n: int | None = None,
) -> torch.Tensor:
    """See ``anynpu.weight_quant_matmul``; a foreign prepacked weight is told by ``anynpu.check_device_errors``."""
    shape, dtype = spec.matmul_result(
        x, weight, scale, offset, bias, quant_scale, quant_offset, group_size, inner_precise, n
    )
    y = x.new_empty(shape, dtype=dtype)
    if y.numel() == 0:
        return y
    k, n = x.shape[-1], shape[-1]
    stored = _stored(weight, k, n)
    rows = x.reshape(1, -1, k) if weight.dim() <= 2 else x.reshape(-1, *x.shape[-2:])
    batch, m = rows.shape[:2]
    weight_strides = (0, 0, 0)
    if not spec.is_prepacked(weight):
        weight = weight.reshape(-1, *weight.shape[-2:])
        weight_strides = weight.stride()
    block = dict(_configuration(m, x.dtype, stored))
    if group_size:
        block["BK"] = min(block["BK"], group_size & -group_size)
    tiles = batch * ceil_divide(m, block["BM"]) * ceil_divide(n, block["BN"])
    parts, part_k = _parts(k, block["BK"], tiles, block.pop("programs"))
    sums = y if parts == 1 else x.new_empty((parts, batch, m, n), dtype=torch.float32)
    ending = {"BIAS": bias is not None, "QUANT": quant_scale is not None, "QUANT_OFFSET": quant_offset is not None}
    # What is absent is not read.
    ending_tensors = [scale if value is None else value for value in (bias, quant_scale, quant_offset)]
    ending_strides = [_strides(value)[1] for value in (bias, quant_scale, quant_offset)]
    error = _device_errors.word(x.device) if spec.is_prepacked(weight) else y
    launch(
        _matmul_kernel, tiles * parts, rows, weight, scale, scale if offset is None else offset, *ending_tensors, y,
        sums, error, m, n, k, y.numel(), group_size, part_k, *rows.stride(), *weight_strides, *_strides(scale),
        *_strides(offset), *ending_strides, RULE=_HEADER, STORED=stored, WHOLE=k % block["BK"] == 0,
        GROUPS=group_size > 0, OFFSET=offset is not None, PARTS=parts, **ending, **block,
    )  # fmt: skip
    if parts > 1:
        launch(_add_parts_kernel, ceil_divide(y.numel(), _SUM_BLOCK), sums, *ending_tensors, y, y.numel(), n,
               *ending_strides, PARTS=parts, BLOCK=_SUM_BLOCK, **ending)  # fmt: skip
    return y


def _stored(weight: torch.Tensor, k: int, n: int) -> int:
    if spec.is_prepacked(weight):
        return (CELLS4 if weight.shape[0] == spec.prepacked_bytes(4, k, n) else CELLS8).value
    if weight.dtype == torch.int8:
        return INT8.value
    return (WORDS_K if spec.is_transposed(weight, k) else WORDS_N).value


def _strides(parameter: torch.Tensor | None) -> tuple[int, int]:
    """(of the group, of the column); 0 where one value serves all."""
    if parameter is None:
        return 0, 0
    rows = parameter.reshape(1, -1) if parameter.dim() == 1 else parameter
    return tuple(0 if size == 1 else stride for size, stride in zip(rows.shape, rows.stride(), strict=True))


def _configuration(m: int, dtype: torch.dtype, stored: int) -> dict[str, int]:
    """The tile of a program, and how many programs should at least run, from the file of tuning results."""
    kinds = {INT8.value: "int8", WORDS_N.value: "int4 along N", WORDS_K.value: "int4 along K"}
    kind = "float32 x" if dtype == torch.float32 else kinds.get(stored, "prepacked")
    for entry in _configurations()["weight_quant_matmul"][kind]:
        if entry["most_m"] is None or m <= entry["most_m"]:
            return entry["tile"]
    raise AssertionError(f"{_CONFIGURATIONS}: the last entry of {kind} must be for any m")


@functools.cache
def _configurations() -> dict:
    return json.loads(_CONFIGURATIONS.read_text())


def _parts(k: int, step: int, tiles: int, programs: int) -> tuple[int, int]:
    """Into how many parts K is cut so that enough programs run, and their length."""
    steps = ceil_divide(k, step)
    wanted = max(1, min(programs // tiles, steps // _LEAST_STEPS))
    length = max(1, ceil_divide(steps, wanted)) * step
    return max(1, ceil_divide(k, length)), length


def weight_quant_prepack(weight: torch.Tensor) -> torch.Tensor:
    """See ``anynpu.weight_quant_prepack``."""
    blob = weight.new_empty(spec.prepacked_size(weight), dtype=torch.uint8)
    k, n = spec.matrix_shape(spec.PREPACK, weight)
    stored = (WORDS_K if spec.is_transposed(weight) else WORDS_N).value
    count = blob.numel() - spec.HEADER_BYTES
    launch(_prepack_kernel, max(1, ceil_divide(count, _SUM_BLOCK)), weight, blob, k, n, count, *weight.stride(),
           STORED=INT8.value if weight.dtype == torch.int8 else stored, BLOCK=_SUM_BLOCK)  # fmt: skip
    return blob
