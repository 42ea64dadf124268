# SPDX-License-Identifier: Apache-2.0
"""CUDA kernels of grouped_matmul: the tiles of all groups' rows, shared out among programs that stay.

A weight of three axes is one launch. So is each matrix of a list, whose group alone is then looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import triton
import triton.language as tl

from anynpu import _device_errors
from anynpu._arguments import takes
from anynpu._triton import PROCESSORS, ceil_divide, launch, power_of_two, rounded, with_close_rows
from anynpu._triton_groups import (
    bounds_of,
    groups_of,
    int8_launch,
    int8_sums,
    place_of,
    programs_for,
    rows_of_groups,
    store_zeros,
)
from anynpu.ops.grouped_matmul.spec import COUNTS, OP, PAIRS, Arguments, Mode, results
from anynpu.ops.grouped_matmul_combine.triton import multiply as multiply_int4
from anynpu.ops.quant_matmul.triton import store_scaled
from anynpu.ops.weight_quant_matmul.spec import is_transposed
from anynpu.ops.weight_quant_matmul.triton import FLOATS, INT8, WORDS_K, WORDS_N, scaled_sums

_GROUPS = _device_errors.new_rule(OP, "group_list", "must fit the groups before it, the groups and the rows of x")
_BIAS = _device_errors.new_rule(OP, "bias", "must be so small that int32 sums cannot overflow")


@dataclass(frozen=True)
class _Product:
    """One launch: rows of x [M, K], separated by ``bounds`` [E + 1], times weight [E, K, N] into y [M, N]."""

    x: torch.Tensor
    y: torch.Tensor
    weight: torch.Tensor
    bounds: torch.Tensor
    bias: torch.Tensor | None = None
    scale: torch.Tensor | None = None
    antiquant_scale: torch.Tensor | None = None
    antiquant_offset: torch.Tensor | None = None
    per_token_scale: torch.Tensor | None = None


@triton.jit
def _store(sums, y_ptr, first_row, end_row, first_column, N, K, scale_ptr, row_scale_ptr, bias_ptr, first_bias,
           error_ptr, RULE: tl.constexpr, SCALES: tl.constexpr, ROW_SCALE: tl.constexpr,
           BIAS: tl.constexpr):  # fmt: skip
    """The epilogue of transposed sums."""
    own_row, own_column = tl.arange(0, sums.shape[1]), tl.arange(0, sums.shape[0])
    row, column = first_row + own_row, first_column + own_column
    y = y_ptr + (first_row.to(tl.int64) * N + first_column) + (own_row[:, None] * N + own_column[None, :])
    inside = (row < end_row)[:, None] & (column < N)[None, :]
    store_scaled(y, inside, tl.trans(sums), row, column, end_row, N, K, scale_ptr, scale_ptr, row_scale_ptr, bias_ptr,
                 first_bias, error_ptr, RULE, SCALES, 0, ROW_SCALE, BIAS)  # fmt: skip


@triton.jit
def _zero_kernel(y_ptr, bounds_ptr, M, N, G: tl.constexpr, BLOCK: tl.constexpr):
    """The rows that belong to no group."""
    store_zeros(y_ptr, tl.load(bounds_ptr + G), M, N, BLOCK)


@triton.jit
def _int8_kernel(x_ptr, weight_ptr, y_ptr, bounds_ptr, scale_ptr, row_scale_ptr, bias_ptr, error_ptr, N, K, x_row, x_k,
                 weight_group, weight_k, weight_column, scale_group, RULE: tl.constexpr, SCALES: tl.constexpr,
                 ROW_SCALE: tl.constexpr, BIAS: tl.constexpr, ALONG_K: tl.constexpr, WHOLE: tl.constexpr,
                 G: tl.constexpr, GROUPS: tl.constexpr, BM: tl.constexpr, BEHIND: tl.constexpr, BN: tl.constexpr,
                 BK: tl.constexpr):  # fmt: skip
    """int8 x and weights: exact sums, then the epilogue of quant_matmul. WHOLE: K is a multiple of BK."""
    first, end = rows_of_groups(bounds_ptr, G, GROUPS)
    row_tiles, column_tiles = tl.sum(tl.cdiv(end - first, BM + BEHIND), axis=0), tl.cdiv(N, BN)
    for number in range(tl.program_id(0), row_tiles * column_tiles, tl.num_programs(0)):
        its_group, first_row, end_row = place_of(number // column_tiles, first, end, GROUPS, BM + BEHIND)
        first_column, group = number % column_tiles * BN, its_group.to(tl.int64)
        weight, scale = weight_ptr + group * weight_group, scale_ptr + group * scale_group
        if BEHIND > 0 and first_row + BM < end_row:
            sums, behind = int8_sums(x_ptr, weight, first_row, end_row, first_column, N, K, x_row, x_k, weight_k,
                                     weight_column, ALONG_K, WHOLE, BM, BEHIND, BN, BK)  # fmt: skip
            _store(behind, y_ptr, first_row + BM, end_row, first_column, N, K, scale, row_scale_ptr, bias_ptr,
                   group * N, error_ptr, RULE, SCALES, ROW_SCALE, BIAS)  # fmt: skip
        else:
            sums = int8_sums(x_ptr, weight, first_row, end_row, first_column, N, K, x_row, x_k, weight_k,
                             weight_column, ALONG_K, WHOLE, BM, 0, BN, BK)[0]  # fmt: skip
        _store(sums, y_ptr, first_row, end_row, first_column, N, K, scale, row_scale_ptr, bias_ptr, group * N,
               error_ptr, RULE, SCALES, ROW_SCALE, BIAS)  # fmt: skip


@triton.jit
def _float_kernel(x_ptr, weight_ptr, y_ptr, bounds_ptr, scale_ptr, offset_ptr, bias_ptr, N, K, group_size, x_row, x_k,
                  weight_group, weight_k, weight_column, scale_group, scale_k, scale_column, offset_group, offset_k,
                  offset_column, STORED: tl.constexpr, WHOLE: tl.constexpr, SCALE_GROUPS: tl.constexpr,
                  OFFSET: tl.constexpr, BIAS: tl.constexpr, G: tl.constexpr, GROUPS: tl.constexpr,
                  PROGRAMS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):  # fmt: skip
    """Float x: the sums of weight_quant_matmul, or plain ones of float weights. BK divides group_size."""
    first, end = rows_of_groups(bounds_ptr, G, GROUPS)
    row_tiles, column_tiles = tl.sum(tl.cdiv(end - first, BM), axis=0), tl.cdiv(N, BN)
    for number in range(tl.program_id(0), row_tiles * column_tiles, PROGRAMS):
        its_group, first_row, end_row = place_of(number // column_tiles, first, end, GROUPS, BM)
        first_column, group = number % column_tiles * BN, its_group.to(tl.int64)
        row, column = first_row + tl.arange(0, BM), first_column + tl.arange(0, BN)
        value = scaled_sums(x_ptr, weight_ptr + group * weight_group, scale_ptr + group * scale_group,
                            offset_ptr + group * offset_group, first_row, end_row, first_column, N, 0, K, K, group_size,
                            x_row, x_k, weight_k, weight_column, scale_k, scale_column, offset_k, offset_column, STORED,
                            WHOLE, SCALE_GROUPS, OFFSET, BM, BN, BK)  # fmt: skip
        if BIAS:
            value += tl.load(bias_ptr + group * N + column, mask=column < N, other=0.0).to(tl.float32)[None, :]
        tl.store(y_ptr + row.to(tl.int64)[:, None] * N + column[None, :], rounded(value, y_ptr.dtype.element_ty),
                 mask=(row < end_row)[:, None] & (column < N)[None, :])  # fmt: skip


@takes(Arguments)
def grouped_matmul(a: Arguments) -> list[torch.Tensor]:
    """See ``anynpu.grouped_matmul``; a wrong group_list or int32 bias is told by ``anynpu.check_device_errors``."""
    shapes, mode = results(a)
    ys = [a.x[0].new_empty(shape, dtype=mode.dtype) for shape in shapes]
    bounds = None if a.group_list is None else _bounds(a, shapes[0][0])
    if a.split_item in (2, 3) and len(a.x) == 1:
        launch(
            _zero_kernel, min(len(ys[0]), 2 * PROCESSORS), ys[0], bounds, *ys[0].shape, G=len(bounds) - 1, BLOCK=1024
        )
        products = _products_of_one(a, ys[0], bounds)
    else:
        if bounds is not None:
            _require_rows(bounds, a.x)
        products = _products_of_many(a, ys)
    for product in products:
        if product.y.numel() > 0:
            _MULTIPLY[mode.name](product, mode)
    return ys


def _bounds(a: Arguments, rows: int) -> torch.Tensor:
    if a.group_list_type == PAIRS:
        return bounds_of(_counts_of_pairs(a.group_list, rows, a.groups), rows, _GROUPS, True)
    return bounds_of(a.group_list, rows, _GROUPS, a.group_list_type == COUNTS)


def _counts_of_pairs(pairs: torch.Tensor, rows: int, groups: int) -> torch.Tensor:
    """int64 [groups] of pairs (group, count) in ascending order; all 0 if they are wrong."""
    counts = pairs.new_zeros(groups)
    if pairs.shape[0] == 0:
        return counts
    group, count = pairs.unbind(1)
    counted = count != 0
    named = torch.where(counted, group, -1)
    before = torch.cat([named.new_full((1,), -1), named.cummax(0).values[:-1]])
    limited = count.clamp(-1, rows + 1)  # so that sums cannot overflow
    wrong_group = counted & ((group <= before) | (group >= groups))
    wrong_count = (count < 0) | (limited.clamp(min=0).cumsum(0) > rows)
    wrong = torch.stack([wrong_group, wrong_count], 1)
    _device_errors.note(wrong, _GROUPS)
    taken = torch.where(wrong.any(), 0, count)
    return counts.index_add_(0, group.clamp(0, groups - 1), taken)


def _require_rows(bounds: torch.Tensor, x: Sequence[torch.Tensor]) -> None:
    """Notes a group_list that says something else than the rows of each x, which count."""
    ends = accumulate(rows.shape[0] for rows in x)
    _device_errors.note(torch.stack([own != end for own, end in zip(bounds[1:], ends, strict=True)]), _GROUPS)


def _products_of_one(a: Arguments, y: torch.Tensor, bounds: torch.Tensor) -> Iterator[_Product]:
    """One x for all weights."""
    lists = a.lists
    tokens = lists.pop("per_token_scale", [None])[0]
    for index, matrix in enumerate(a.weight):
        stacked = matrix if matrix.dim() == 3 else matrix.unsqueeze(0)
        own_bounds = bounds if matrix.dim() == 3 else bounds[index : index + 2]
        own = {name: tensors[index] for name, tensors in lists.items()}
        yield _Product(a.x[0], y, stacked, own_bounds, **own, per_token_scale=tokens)


def _products_of_many(a: Arguments, ys: list[torch.Tensor]) -> Iterator[_Product]:
    """An x for each weight; their results are one after the other, or each its own."""
    parts = [y.reshape(-1, y.shape[-1]) for y in ys]
    if len(parts) == 1:
        parts = parts[0].split([rows.shape[:-1].numel() for rows in a.x])
    for index, (rows, y, matrix) in enumerate(zip(a.x, parts, a.weight, strict=True)):
        m = y.shape[0]
        bounds = torch.arange(0, 2 * m, m, dtype=torch.int32, device=y.device) if m > 0 else None
        own = {name: tensors[index] for name, tensors in a.lists.items()}
        yield _Product(rows.reshape(m, rows.shape[-1]), y, matrix.unsqueeze(0), bounds, **own)


def _multiply_int8(product: _Product, mode: Mode) -> None:
    x, y, weight = with_close_rows(product.x), product.y, with_close_rows(product.weight)
    (m, k), groups, n = x.shape, weight.shape[0], y.shape[1]
    scale, bias, rows = (
        None if value is None else value.contiguous()
        for value in (product.scale, product.bias, product.per_token_scale)
    )
    programs, block = int8_launch(m, n, groups, weight)
    present = [y if value is None else value for value in (scale, rows, bias)]  # what is absent is not read
    scales = 0 if scale is None else min(scale.shape[-1], 2)
    scale_group = scale.shape[-1] if scale is not None and scale.dim() == 2 else 0
    launch(
        _int8_kernel, programs, x, weight, y, product.bounds, *present, _device_errors.word(x.device), n, k,
        *x.stride(), *weight.stride(), scale_group, RULE=_BIAS, SCALES=scales, ROW_SCALE=rows is not None,
        BIAS=bias is not None, **block,
    )  # fmt: skip


def _multiply_int4(product: _Product, mode: Mode) -> None:
    groups, n, rows = product.weight.shape[0], product.y.shape[1], product.per_token_scale
    multiply_int4(
        product.y, product.x, product.weight, product.scale.reshape(groups, -1, n).contiguous(), product.bounds,
        bias=None if product.bias is None else product.bias.contiguous(),
        pertoken_scale=None if rows is None else rows.contiguous(),
    )  # fmt: skip


def _multiply_floats(product: _Product, mode: Mode) -> None:
    x, y, weight = with_close_rows(product.x), product.y, with_close_rows(product.weight)
    (m, k), groups, n = x.shape, weight.shape[0], y.shape[1]
    scale, offset = (
        None if value is None else value.reshape(groups, -1, n)
        for value in (product.antiquant_scale, product.antiquant_offset)
    )
    block = _tile(ceil_divide(m, groups), x.dtype)
    group_size = 0 if scale is None or scale.shape[1] == 1 else k // scale.shape[1]
    if group_size:
        block["BK"] = min(block["BK"], group_size & -group_size)
    programs = programs_for(m, n, groups, block)
    bias = None if product.bias is None else product.bias.contiguous()
    present = [y if value is None else value for value in (scale, offset, bias)]
    strides = [(0, 0, 0) if value is None else value.stride() for value in (scale, offset)]
    launch(
        _float_kernel, programs, x, weight, y, product.bounds, *present, n, k, group_size, *x.stride(),
        *weight.stride(), *strides[0], *strides[1], STORED=_stored(weight, k), WHOLE=k % block["BK"] == 0,
        SCALE_GROUPS=group_size > 0, OFFSET=offset is not None, BIAS=bias is not None, PROGRAMS=programs,
        **groups_of(groups), **block,
    )  # fmt: skip


_MULTIPLY = {
    "int8": _multiply_int8,
    "int4": _multiply_int4,
    "float": _multiply_floats,
    "antiquant": _multiply_floats,
}


def _stored(weight: torch.Tensor, k: int) -> int:
    if weight.dtype.is_floating_point:
        return FLOATS.value
    if weight.dtype == torch.int8:
        return INT8.value
    return (WORDS_K if is_transposed(weight, k) else WORDS_N).value


def _tile(rows: int, dtype: torch.dtype) -> dict[str, int]:
    """The tile of a program for so many rows of a group on average; chosen by reasoning, not yet measured."""
    if dtype == torch.float32:
        return {"BM": power_of_two(rows, 16, 64), "BN": 64, "BK": 32, "num_warps": 8, "num_stages": 3}
    block = {"BM": power_of_two(rows, 16, 128), "BN": 128, "BK": 64}
    return {**block, "num_warps": 8 if block["BM"] == 128 else 4, "num_stages": 3}
