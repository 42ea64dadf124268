# SPDX-License-Identifier: Apache-2.0
"""CUDA kernels of dynamic_quant: the float32 operations of the reference, so that results are the same bits."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from anynpu import _device_errors
from anynpu._arguments import takes
from anynpu._triton import ceil_divide, half_to_even, launch, power_of_two, report
from anynpu.ops.dynamic_quant.spec import OP, Arguments, outputs

_ENDS = _device_errors.new_rule(OP, "group_index", "must not be below the one before, the last be the number of rows")
_CHANNELS = 64  # columns of a program
_ROWS = 64  # read at once by it


@triton.jit
def magnitude(value):
    return tl.where(value == value, tl.abs(value), 0.0)


@triton.jit
def codes_of(value, scale):
    """rint(value / scale); 0 where the scale is zero (then all values are, or NaN) or the quotient is NaN."""
    quotient = tl.div_rn(value, tl.where(scale == 0.0, 1.0, scale))
    return half_to_even(tl.where(quotient == quotient, quotient, 0.0)).to(tl.int32)


@triton.jit
def _store(y_ptr, row, first, codes, K, inside, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PACKED: tl.constexpr):
    """Codes [ROWS, COLUMNS] from column ``first`` on, as int8 or eight in an int32."""
    if PACKED:
        word = first // 8 + tl.arange(0, COLUMNS // 8)
        nibbles = tl.reshape(codes & 15, (ROWS, COLUMNS // 8, 8)) << (4 * tl.arange(0, 8))[None, None, :]
        place = row[:, None] * (K // 8) + word[None, :]
        tl.store(y_ptr + place, tl.sum(nibbles, axis=2), mask=inside[:, None] & (word < K // 8)[None, :])
    else:
        column = first + tl.arange(0, COLUMNS)
        place = row[:, None] * K + column[None, :]
        tl.store(y_ptr + place, codes.to(tl.int8), mask=inside[:, None] & (column < K)[None, :])


@triton.jit
def _smooth_scales_of(row, smooth_ptr, group_index_ptr, group_stride, error_ptr, rows, K, RULE: tl.constexpr,
                      G: tl.constexpr, GROUPS: tl.constexpr):  # fmt: skip
    """Where the smooth scales of a row begin; the first row checks the ends of all groups."""
    if G == 0:
        return smooth_ptr
    group = tl.arange(0, GROUPS)
    real = group < G
    end = tl.load(group_index_ptr + group * group_stride, mask=real, other=0)
    before = tl.load(group_index_ptr + (group - 1) * group_stride, mask=real & (group > 0), other=0)
    wrong = (end < before) | ((group == G - 1) & (end != rows))
    report(error_ptr, RULE, wrong & real & (row == 0), group)
    passed = tl.sum((real & (end <= row)).to(tl.int32), axis=0)
    return smooth_ptr + tl.minimum(passed, G - 1).to(tl.int64) * K


@triton.jit
def part_of_row(x_row, smooth_row, column, K, column_stride, SMOOTH: tl.constexpr):
    value = tl.load(x_row + column.to(tl.int64) * column_stride, mask=column < K, other=0.0).to(tl.float32)
    if SMOOTH:
        value *= tl.load(smooth_row + column, mask=column < K, other=0.0).to(tl.float32)
    return value


@triton.jit
def largest_of_row(x_row, smooth_row, K, column_stride, SMOOTH: tl.constexpr, BLOCK: tl.constexpr):
    largest = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, K, BLOCK):
        column = first + tl.arange(0, BLOCK)
        largest = tl.maximum(largest, magnitude(part_of_row(x_row, smooth_row, column, K, column_stride, SMOOTH)))
    return tl.max(largest, axis=0)


@triton.jit
def _token_kernel(x_ptr, smooth_ptr, group_index_ptr, error_ptr, y_ptr, scale_ptr, largest_ptr, rows, K, row_stride,
                  column_stride, group_stride, RULE: tl.constexpr, STEP: tl.constexpr, SMOOTH: tl.constexpr,
                  G: tl.constexpr, GROUPS: tl.constexpr, MOST: tl.constexpr, PACKED: tl.constexpr,
                  BLOCK: tl.constexpr):  # fmt: skip
    """One row. STEP "token": scale and codes. "largest": its largest magnitude, joined with those of the other rows.
    "codes": its codes, with the scale that all rows share."""
    row = tl.program_id(0).to(tl.int64)
    smooth_row = _smooth_scales_of(row, smooth_ptr, group_index_ptr, group_stride, error_ptr, rows, K, RULE, G, GROUPS)
    x_row = x_ptr + row * row_stride
    if STEP == "codes":
        scale = tl.div_rn(tl.load(largest_ptr), MOST)
        tl.store(scale_ptr, scale, mask=row == 0)
    else:
        largest = largest_of_row(x_row, smooth_row, K, column_stride, SMOOTH, BLOCK)
        if STEP == "largest":
            tl.atomic_max(largest_ptr, largest)
        else:
            scale = tl.div_rn(largest, MOST)
            tl.store(scale_ptr + row, scale)
    if STEP != "largest":
        for first in range(0, K, BLOCK):
            value = part_of_row(x_row, smooth_row, first + tl.arange(0, BLOCK), K, column_stride, SMOOTH)
            one = tl.arange(0, 1)
            _store(y_ptr, row + one, first, codes_of(value, scale)[None, :], K, one == 0, 1, BLOCK, PACKED)


@triton.jit
def _rows_of_channels(x_columns, smooth_ptr, row, column, M, K, row_stride, SMOOTH: tl.constexpr):
    inside = (row < M)[:, None] & (column < K)[None, :]
    value = tl.load(x_columns + row.to(tl.int64)[:, None] * row_stride, mask=inside, other=0.0).to(tl.float32)
    if SMOOTH:
        value *= tl.load(smooth_ptr + row, mask=row < M, other=0.0).to(tl.float32)[:, None]
    return value


@triton.jit
def _channel_kernel(x_ptr, smooth_ptr, y_ptr, scale_ptr, M, K, batch_stride, row_stride, column_stride,
                    SMOOTH: tl.constexpr, MOST: tl.constexpr, PACKED: tl.constexpr, ROWS: tl.constexpr,
                    BLOCK: tl.constexpr):  # fmt: skip
    """BLOCK columns of one matrix: their largest magnitudes over its rows, then their codes."""
    blocks = tl.cdiv(K, BLOCK)
    batch, first = (tl.program_id(0) // blocks).to(tl.int64), (tl.program_id(0) % blocks) * BLOCK
    column = first + tl.arange(0, BLOCK)
    x_columns = x_ptr + batch * batch_stride + column.to(tl.int64)[None, :] * column_stride
    largest = tl.zeros((BLOCK,), tl.float32)
    for first_row in range(0, M, ROWS):
        row = first_row + tl.arange(0, ROWS)
        value = _rows_of_channels(x_columns, smooth_ptr, row, column, M, K, row_stride, SMOOTH)
        largest = tl.maximum(largest, tl.max(magnitude(value), axis=0))
    scale = tl.div_rn(largest, MOST)
    tl.store(scale_ptr + batch * K + column, scale, mask=column < K)
    for first_row in range(0, M, ROWS):
        row = first_row + tl.arange(0, ROWS)
        codes = codes_of(
            _rows_of_channels(x_columns, smooth_ptr, row, column, M, K, row_stride, SMOOTH), scale[None, :]
        )
        _store(y_ptr, batch * M + row, first, codes, K, row < M, ROWS, BLOCK, PACKED)


@takes(Arguments)
def dynamic_quant(a: Arguments) -> tuple[torch.Tensor, torch.Tensor]:
    """See ``anynpu.dynamic_quant``; a wrong group_index is told by ``anynpu.check_device_errors``."""
    (shape, dtype), (scale_shape, scale_dtype) = outputs(a)
    y, scale = a.x.new_empty(shape, dtype=dtype), a.x.new_zeros(scale_shape, dtype=scale_dtype)
    if a.x.numel() == 0:
        return y, scale
    options = {"SMOOTH": a.smooth_scales is not None, "PACKED": dtype == torch.int32}
    options["MOST"] = 127.0 if dtype == torch.int8 else 7.0
    smooth = scale if a.smooth_scales is None else a.smooth_scales.contiguous()  # what is absent is not read
    if a.quant_mode == "perchannel":
        _channels(a.x, smooth, y, scale, options)
    else:
        _tokens(a, smooth, y, scale, options)
    return y, scale


def _channels(x: torch.Tensor, smooth: torch.Tensor, y: torch.Tensor, scale: torch.Tensor, options: dict) -> None:
    matrices = x.reshape(-1, *x.shape[-2:])
    batch, m, k = matrices.shape
    launch(_channel_kernel, batch * ceil_divide(k, _CHANNELS), matrices, smooth, y, scale, m, k, *matrices.stride(),
           ROWS=_ROWS, BLOCK=_CHANNELS, **options)  # fmt: skip


def _tokens(a: Arguments, smooth: torch.Tensor, y: torch.Tensor, scale: torch.Tensor, options: dict) -> None:
    group_index, matrix = a.group_index, a.x.reshape(-1, a.x.shape[-1])
    rows, k = matrix.shape
    largest = torch.zeros_like(scale) if a.quant_mode == "pertensor" else scale
    ends, error = (scale, scale) if group_index is None else (group_index, _device_errors.word(matrix.device))
    groups = 0 if group_index is None else group_index.shape[0]
    group_stride = 1 if group_index is None else group_index.stride(0)
    options |= {"G": groups, "GROUPS": power_of_two(groups, 1, 1 << 20), "RULE": _ENDS}
    for step in ("token",) if a.quant_mode == "pertoken" else ("largest", "codes"):
        launch(_token_kernel, rows, matrix, smooth, ends, error, y, scale, largest, rows, k, *matrix.stride(),
               group_stride, STEP=step, BLOCK=power_of_two(k, 16, 4096), **options)  # fmt: skip
