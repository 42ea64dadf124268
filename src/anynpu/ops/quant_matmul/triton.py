# SPDX-License-Identifier: Apache-2.0
"""CUDA kernel of quant_matmul: exact int32 sums on the tensor cores, the epilogue of the CPU kernels.

int4 weights are unpacked to int8 by a kernel before.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from anynpu import _device_errors
from anynpu._arguments import takes
from anynpu._triton import (
    ceil_divide,
    dot,
    encoded_offset,
    encoded_scale,
    launch,
    report,
    rounded,
    tile_of,
    with_close_rows,
)
from anynpu.ops.quant_matmul.int4 import unpacked_words
from anynpu.ops.quant_matmul.spec import OP, Arguments, output_shape
from anynpu.ops.weight_quant_matmul.spec import is_prepacked
from anynpu.ops.weight_quant_matmul.triton import unprepacked

_BIAS = _device_errors.new_rule(OP, "bias", "must be so small that int32 sums cannot overflow")
_HEADER = _device_errors.new_rule(
    OP, "the header of a prepacked x2", "must be what weight_quant_prepack writes for this K and N"
)


@triton.jit
def _scaled_exactly(sums, scale):
    """sums * scale as a float32 from which rounding to 16 bits rounds the product once: its last bit is odd unless
    the product is exact (a double has 29 bits more than a float)."""
    bits = (sums.to(tl.float64) * scale.to(tl.float64)).to(tl.int64, bitcast=True)
    below = bits & ((1 << 29) - 1)
    odd = (bits - below) | tl.where(below != 0, 1 << 29, 0)
    return odd.to(tl.float64, bitcast=True).to(tl.float32)


@triton.jit
def _column_values(ptr, column, N, SINGLE: tl.constexpr):
    """The parameter of each column; one for all columns where SINGLE."""
    return tl.load(ptr + (column * 0 if SINGLE else column), mask=column < N, other=0)


@triton.jit
def _as_float(scale):
    """float32 of a scale, or of the word that holds it."""
    return encoded_scale(scale) if scale.dtype == tl.int64 else scale.to(tl.float32)


@triton.jit
def store_scaled(y, inside, sums, row, column, M, N, K, scale_ptr, offset_ptr, row_scale_ptr, bias_ptr, first_bias,
                 error_ptr, RULE: tl.constexpr, SCALES: tl.constexpr, OFFSETS: tl.constexpr, ROW_SCALE: tl.constexpr,
                 BIAS: tl.constexpr):  # fmt: skip
    """The epilogue of a tile of exact sums. SCALES, OFFSETS: 0 none, 1 for all columns, 2 one a column."""
    dtype: tl.constexpr = y.dtype.scalar.element_ty
    float_bias: tl.constexpr = BIAS and bias_ptr.dtype.element_ty != tl.int32
    words: tl.constexpr = scale_ptr.dtype.element_ty == tl.int64
    if BIAS:
        place = first_bias + column
        bias = tl.load(bias_ptr + place, mask=column < N, other=0)
        if not float_bias:
            most = 0x7FFFFFFF - K * 16384
            report(error_ptr, RULE, (bias > most) | (bias < -most), place)
            sums += bias[None, :]
    if dtype == tl.int32:
        tl.store(y, sums, mask=inside)
    else:
        stored = _column_values(scale_ptr, column, N, SCALES == 1)
        scale = _as_float(stored)
        if dtype != tl.int8 and not ROW_SCALE and not float_bias:
            if dtype == tl.float32:
                value = (sums.to(tl.float64) * scale.to(tl.float64)[None, :]).to(tl.float32)
            else:
                value = _scaled_exactly(sums, scale[None, :])
        else:
            value = sums.to(tl.float32) * scale[None, :]
            if ROW_SCALE:
                value *= tl.load(row_scale_ptr + row, mask=row < M, other=0.0)[:, None]
            if float_bias:
                value += bias.to(tl.float32)[None, :]
            if OFFSETS > 0:
                value += _column_values(offset_ptr, column, N, OFFSETS == 1)[None, :]
            elif words and dtype == tl.int8:
                value += encoded_offset(stored)[None, :]
        tl.store(y, rounded(value, dtype), mask=inside)


@triton.jit
def _store_grouped(y, inside, value, row, column, M, N, offset_ptr, row_scale_ptr, bias_ptr, first_bias,
                   OFFSETS: tl.constexpr, ROW_SCALE: tl.constexpr, BIAS: tl.constexpr):  # fmt: skip
    """The epilogue of a tile of sums that were scaled by groups."""
    if OFFSETS > 0:
        value += _column_values(offset_ptr, column, N, OFFSETS == 1)[None, :]
    if ROW_SCALE:
        value *= tl.load(row_scale_ptr + row, mask=row < M, other=0.0)[:, None]
    if BIAS:
        value += tl.load(bias_ptr + first_bias + column, mask=column < N, other=0.0).to(tl.float32)[None, :]
    tl.store(y, rounded(value, y.dtype.scalar.element_ty), mask=inside)


@triton.jit
def _kernel(x1_ptr, x2_ptr, y_ptr, scale_ptr, offset_ptr, row_scale_ptr, bias_ptr, error_ptr, M, N, K, group_size,
            x1_batch, x1_row, x1_k, x2_batch, x2_k, x2_column, bias_batch, RULE: tl.constexpr, SCALES: tl.constexpr,
            OFFSETS: tl.constexpr, ROW_SCALE: tl.constexpr, BIAS: tl.constexpr, GROUPED: tl.constexpr,
            WHOLE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):  # fmt: skip
    """One tile of y. WHOLE: K is a multiple of BK. GROUPED: groups of k, which BK divides, have scales of their own."""
    row_tiles, column_tiles = tl.cdiv(M, BM), tl.cdiv(N, BN)
    batch = (tl.program_id(0) // (row_tiles * column_tiles)).to(tl.int64)
    row_tile, column_tile = tile_of(tl.program_id(0) % (row_tiles * column_tiles), row_tiles, column_tiles)
    row, column, k = row_tile * BM + tl.arange(0, BM), column_tile * BN + tl.arange(0, BN), tl.arange(0, BK)
    x1 = x1_ptr + batch * x1_batch + row.to(tl.int64)[:, None] * x1_row + k[None, :] * x1_k
    x2 = x2_ptr + batch * x2_batch + k[:, None] * x2_k + column.to(tl.int64)[None, :] * x2_column
    x1_inside, x2_inside = (row < M)[:, None], (column < N)[None, :]
    sums = tl.zeros((BM, BN), tl.int32)
    if GROUPED:
        value = tl.zeros((BM, BN), tl.float32)
    for first in range(0, K, BK):
        in_k = k < K - first
        a = tl.load(x1, mask=x1_inside if WHOLE else x1_inside & in_k[None, :], other=0)
        b = tl.load(x2, mask=x2_inside if WHOLE else x2_inside & in_k[:, None], other=0)
        sums = dot(a, b, sums)
        x1 += BK * x1_k
        x2 += BK * x2_k
        if GROUPED:
            if (first + BK) % group_size == 0 or first + BK >= K:
                scale = _column_values(scale_ptr + first // group_size * N, column, N, False)
                value += sums.to(tl.float32) * _as_float(scale)[None, :]
                sums = tl.zeros((BM, BN), tl.int32)
    y, inside = y_ptr + (batch * M + row)[:, None] * N + column[None, :], x1_inside & x2_inside
    if GROUPED:
        _store_grouped(y, inside, value, row, column, M, N, offset_ptr, row_scale_ptr, bias_ptr, batch * bias_batch,
                       OFFSETS, ROW_SCALE, BIAS)  # fmt: skip
    else:
        store_scaled(y, inside, sums, row, column, M, N, K, scale_ptr, offset_ptr, row_scale_ptr, bias_ptr,
                     batch * bias_batch, error_ptr, RULE, SCALES, OFFSETS, ROW_SCALE, BIAS)  # fmt: skip


@takes(Arguments)
def quant_matmul(a: Arguments) -> torch.Tensor:
    """See ``anynpu.quant_matmul``; a bias that is too large is told by ``anynpu.check_device_errors``."""
    *batches, m, n = output_shape(a)
    y = a.x1.new_empty((*batches, m, n), dtype=a.dtype)
    if y.numel() == 0:
        return y
    x2, k = a.x2, a.x1.shape[-1]
    if is_prepacked(x2):
        x2 = unprepacked(x2, k, n, _HEADER)
    elif x2.dtype == torch.int32:
        x2 = unpacked_words(x2, k)
    first = with_close_rows(a.x1.expand(*batches, m, k).reshape(-1, m, k))
    second = with_close_rows(x2).expand(*batches, k, n).reshape(-1, k, n)
    scale = a.scale.view(torch.int64) if a.scale.dtype == torch.uint64 else a.scale
    multiply(first, second, y, scale, offset=a.offset, pertoken_scale=a.pertoken_scale, bias=a.bias, rule=_BIAS,
             group_size=a.group_size)  # fmt: skip
    return y


def multiply(
    x1: torch.Tensor,
    x2: torch.Tensor,
    y: torch.Tensor,
    scale: torch.Tensor,
    *,
    offset: torch.Tensor | None = None,
    pertoken_scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    rule: int,
    group_size: int = 0,
) -> None:
    """x1 [B, M, K] times x2 [B, K, N] into y, contiguous; ``rule`` is broken by a bias that is too large."""
    (batch, m, k), n = x1.shape, x2.shape[-1]
    bias_batch = n if bias is not None and bias.dim() == 3 else 0
    parameters = [None if value is None else value.contiguous() for value in (scale, offset, pertoken_scale, bias)]
    present = [scale if value is None else value for value in parameters]  # what is absent is not read
    tile = _tile(m)
    if group_size:
        tile["BK"] = min(tile["BK"], group_size & -group_size)
    launch(
        _kernel, batch * ceil_divide(m, tile["BM"]) * ceil_divide(n, tile["BN"]), x1, x2, y, *present,
        _device_errors.word(x1.device), m, n, k, group_size, *x1.stride(), *x2.stride(), bias_batch, RULE=rule,
        SCALES=min(scale.shape[0], 2), OFFSETS=0 if offset is None else min(offset.shape[0], 2),
        ROW_SCALE=pertoken_scale is not None, BIAS=bias is not None, GROUPED=group_size > 0,
        WHOLE=k % tile["BK"] == 0, **tile,
    )  # fmt: skip


def _tile(m: int) -> dict[str, int]:
    """The tile of a program, chosen by reasoning and not yet measured: narrow where few rows leave programs idle."""
    if m <= 16:
        return {"BM": 16, "BN": 32, "BK": 128, "num_warps": 4, "num_stages": 4}
    if m <= 64:
        return {"BM": 64, "BN": 64, "BK": 128, "num_warps": 4, "num_stages": 4}
    return {"BM": 128, "BN": 128, "BK": 128, "num_warps": 8, "num_stages": 4}
