# SPDX-License-Identifier: Apache-2.0
"""CUDA kernels of grouped_matmul_combine: what the experts make of their rows, then the sum of each token's rows.

The host does not know how many rows an expert has. Programs that stay for the whole call share out the tiles that there
are; tokens add their rows in ascending order, so that results are the same bits in every run.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from anynpu import _device_errors
from anynpu._triton import ceil_divide, dot, encoded_scale, launch, nibbles, power_of_two, report, rounded, tile
from anynpu._triton_groups import ends_of, groups_of, place_of, programs_for, rows_of_groups, store_bounds
from anynpu.ops.grouped_matmul_combine.spec import COUNTS, OP, output_shape
from anynpu.ops.weight_quant_matmul.spec import is_transposed

_GROUPS = _device_errors.new_rule(OP, "group_list", "must not be negative or decrease, nor go beyond the rows of x")
_ROWS = _device_errors.new_rule(OP, "row_index", "must be a row of y")
_BLOCK = 1024

# How a weight is stored: int8, or int32 words of eight int4 along N, along K, or along K with groups that cut words.
INT8, WORDS_N, WORDS_K, CUT_WORDS_K = (tl.constexpr(number) for number in range(4))


@triton.jit
def _targets_kernel(group_list_ptr, row_index_ptr, bounds_ptr, target_ptr, error_ptr, M, batch, RULE: tl.constexpr,
                    ROWS: tl.constexpr, COUNTS: tl.constexpr, G: tl.constexpr, GROUPS: tl.constexpr,
                    BLOCK: tl.constexpr):  # fmt: skip
    """The bounds of the experts' rows; and the row of y of each row of x, ``batch`` for rows that have none."""
    end = ends_of(group_list_ptr, error_ptr, M, RULE, COUNTS, G, GROUPS)
    store_bounds(bounds_ptr, end, G, GROUPS)
    last = tl.max(tl.where(tl.arange(0, GROUPS) < G, end, 0), axis=0)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    index = tl.load(row_index_ptr + row, mask=row < last, other=0)
    in_y = (index >= 0) & (index < batch)
    whole = tl.where(in_y, index, 0).to(tl.int32)
    in_y &= whole.to(index.dtype) == index
    report(error_ptr, ROWS, (row < last) & (in_y == 0), row)
    tl.store(target_ptr + row, tl.where((row < last) & in_y, whole, batch), mask=row < M)


@triton.jit
def _weight_tile(weight, first_k, end, first_column, N, k_stride, column_stride, STORED: tl.constexpr,
                 WHOLE: tl.constexpr, BK: tl.constexpr, BN: tl.constexpr):  # fmt: skip
    """int8 [BK, BN]; 0 from k = end on, which is not looked at if WHOLE, and beyond N."""
    if STORED == INT8:
        return tile(weight, first_k, first_column, end, N, k_stride, column_stride, WHOLE, False, BK, BN)
    else:
        if STORED == CUT_WORDS_K:
            k, column = first_k + tl.arange(0, BK)[:, None], first_column + tl.arange(0, BN)[None, :]
            place = (k // 8).to(tl.int64) * k_stride + column.to(tl.int64) * column_stride
            bits = tl.load(weight + place, mask=(k < end) & (column < N), other=0) >> (k % 8 * 4)
        else:
            along_k: tl.constexpr = STORED == WORDS_K
            bits = nibbles(weight, first_k, first_column, end, N, k_stride, column_stride, along_k, WHOLE, BK, BN)
        return (((bits & 15) ^ 8) - 8).to(tl.int8)


@triton.jit
def _matmul_kernel(x_ptr, weight_ptr, scale_ptr, bounds_ptr, bias_ptr, offset_ptr, token_ptr, logit_ptr, value_ptr, N,
                   scale_groups, size, x_row, x_k, weight_expert, weight_k, weight_column, STORED: tl.constexpr,
                   WHOLE: tl.constexpr, BIAS: tl.constexpr, OFFSET: tl.constexpr, TOKEN: tl.constexpr,
                   LOGIT: tl.constexpr, G: tl.constexpr, GROUPS: tl.constexpr, PROGRAMS: tl.constexpr,
                   BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):  # fmt: skip
    """Tiles of all experts' rows, shared out among PROGRAMS. A scale group of ``size`` k has a row of scales."""
    first, end = rows_of_groups(bounds_ptr, G, GROUPS)
    row_tiles, column_tiles = tl.sum(tl.cdiv(end - first, BM), axis=0), tl.cdiv(N, BN)
    for number in range(tl.program_id(0), row_tiles * column_tiles, PROGRAMS):
        its_expert, first_row, end_row = place_of(number // column_tiles, first, end, GROUPS, BM)
        first_column = number % column_tiles * BN
        row, column = first_row + tl.arange(0, BM), first_column + tl.arange(0, BN)
        weight = weight_ptr + its_expert.to(tl.int64) * weight_expert
        value = tl.zeros((BM, BN), tl.float32)
        row_sums = tl.zeros((BM,), tl.int32)
        for group in range(0, scale_groups):
            sums = tl.zeros((BM, BN), tl.int32)
            weight_sums = tl.zeros((16, BN), tl.int32)
            for step in range(0, tl.cdiv(size, BK)):
                first_k = group * size + step * BK
                a = tile(x_ptr, first_row, first_k, end_row, (group + 1) * size, x_row, x_k, False, WHOLE, BM, BK)
                b = _weight_tile(weight, first_k, (group + 1) * size, first_column, N, weight_k, weight_column, STORED,
                                 WHOLE, BK, BN)  # fmt: skip
                sums = dot(a, b, sums)
                if STORED != INT8:
                    weight_sums = dot(tl.full((16, BK), -8, tl.int8), b, weight_sums)
                if OFFSET:
                    row_sums += tl.sum(a.to(tl.int32), axis=1)
            scale = tl.load(
                scale_ptr + (its_expert.to(tl.int64) * scale_groups + group) * N + column, mask=column < N, other=0
            )
            if STORED == INT8:
                scale = scale.to(tl.float32)
            else:
                scale = encoded_scale(scale)
                sums += tl.max(weight_sums, axis=0)[None, :]  # its rows are alike
            value += sums.to(tl.float32) * scale[None, :]
        column_of_expert = its_expert * N + column
        if BIAS:
            value += tl.load(bias_ptr + column_of_expert, mask=column < N, other=0.0)[None, :]
        if OFFSET:
            offset = tl.load(offset_ptr + column_of_expert, mask=column < N, other=0.0)
            value += row_sums.to(tl.float32)[:, None] * offset[None, :]
        if TOKEN:
            value *= tl.load(token_ptr + row, mask=row < end_row, other=0.0)[:, None]
        if LOGIT:
            value *= tl.load(logit_ptr + row, mask=row < end_row, other=0.0)[:, None]
        tl.store(value_ptr + row.to(tl.int64)[:, None] * N + column[None, :],
                 rounded(value, value_ptr.dtype.element_ty),
                 mask=(row < end_row)[:, None] & (column < N)[None, :])  # fmt: skip


@triton.jit
def _combine_kernel(value_ptr, order_ptr, begin_ptr, shared_ptr, y_ptr, N, shared_rows, shared_offset, shared_weight,
                    BLOCK: tl.constexpr):  # fmt: skip
    """BLOCK columns of one row of y: its rows of values in ascending order, then its row of the shared expert."""
    row, block = tl.program_id(0) // tl.cdiv(N, BLOCK), tl.program_id(0) % tl.cdiv(N, BLOCK)
    column = block * BLOCK + tl.arange(0, BLOCK)
    inside = column < N
    y = tl.zeros((BLOCK,), tl.float32)
    for place in range(tl.load(begin_ptr + row), tl.load(begin_ptr + row + 1)):
        y += tl.load(value_ptr + tl.load(order_ptr + place) * N + column, mask=inside, other=0.0)
    its_shared = row - shared_offset
    if (its_shared >= 0) & (its_shared < shared_rows):
        shared = tl.load(shared_ptr + its_shared.to(tl.int64) * N + column, mask=inside, other=0.0)
        y += shared.to(tl.float32) * shared_weight
    tl.store(y_ptr + row.to(tl.int64) * N + column, y, mask=inside)


def grouped_matmul_combine(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    group_list: torch.Tensor,
    row_index: torch.Tensor,
    bias: torch.Tensor | None = None,
    offset: torch.Tensor | None = None,
    pertoken_scale: torch.Tensor | None = None,
    logit: torch.Tensor | None = None,
    shared_input: torch.Tensor | None = None,
    shared_input_weight: float = 1.0,
    shared_input_offset: int = 0,
    output_bs: int = 0,
    group_list_type: int = COUNTS,
) -> torch.Tensor:
    """See ``anynpu.grouped_matmul_combine``; a wrong group_list or row_index is told by ``check_device_errors``."""
    batch, n = output_shape(
        x, weight, scale, group_list, row_index, bias, offset, pertoken_scale, logit, shared_input,
        shared_input_weight, shared_input_offset, output_bs, group_list_type,
    )  # fmt: skip
    y = x.new_empty((batch, n), dtype=torch.float32)
    if y.numel() == 0:
        return y
    m, experts = x.shape[0], weight.shape[0]
    bounds, target = (torch.empty(count, dtype=torch.int32, device=x.device) for count in (experts + 1, m))
    launch(_targets_kernel, max(1, ceil_divide(m, _BLOCK)), group_list, row_index, bounds, target,
           _device_errors.word(x.device), m, batch, RULE=_GROUPS, ROWS=_ROWS, COUNTS=group_list_type == COUNTS,
           BLOCK=_BLOCK, **groups_of(experts))  # fmt: skip
    values = x.new_empty((m, n), dtype=torch.float32)
    multiply(values, x, weight, scale, bounds, bias, offset, pertoken_scale, logit)
    by_target = torch.sort(target, stable=True)
    rows = torch.arange(batch + 1, dtype=torch.int32, device=x.device)
    begin = torch.searchsorted(by_target.values, rows, out_int32=True)
    shared = (y, 0, 0) if shared_input is None else (shared_input, shared_input.shape[0], shared_input_offset)
    launch(_combine_kernel, batch * ceil_divide(n, _BLOCK), values, by_target.indices, begin, shared[0], y, n,
           *shared[1:], shared_input_weight, BLOCK=_BLOCK)  # fmt: skip
    return y


def multiply(
    values: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bounds: torch.Tensor,
    bias: torch.Tensor | None,
    offset: torch.Tensor | None,
    pertoken_scale: torch.Tensor | None,
    logit: torch.Tensor | None,
) -> None:
    """Into values [M, N] what the experts make of their rows, separated by bounds [E + 1], times the rows' factors."""
    (m, n), k, experts = values.shape, x.shape[1], weight.shape[0]
    groups = 1 if weight.dtype == torch.int8 else scale.shape[1]
    stored = INT8 if weight.dtype == torch.int8 else WORDS_K if is_transposed(weight, k) else WORDS_N
    if stored == WORDS_K and k // groups % 8:
        stored = CUT_WORDS_K
    block = _tile(ceil_divide(m, experts), k // groups, weight.dtype)
    programs = programs_for(m, n, experts, block)
    words = scale.view(torch.int64) if scale.dtype == torch.uint64 else scale
    present = [values if value is None else value for value in (bias, offset, pertoken_scale, logit)]
    launch(
        _matmul_kernel, programs, x, weight, words, bounds, *present, values, n, groups, k // groups, *x.stride(),
        *weight.stride(), STORED=stored.value, WHOLE=k // groups % block["BK"] == 0, BIAS=bias is not None,
        OFFSET=offset is not None, TOKEN=pertoken_scale is not None, LOGIT=logit is not None, PROGRAMS=programs,
        **groups_of(experts), **block,
    )  # fmt: skip


def _tile(rows: int, group: int, dtype: torch.dtype) -> dict[str, int]:
    """The tile of a program for so many rows of an expert on average; chosen by reasoning, not yet measured."""
    block = {"BM": power_of_two(rows, 16, 128), "BK": power_of_two(group, 32, 128)}
    block["BN"] = 128 if dtype == torch.int8 else 64  # or unpacked words would not fit into registers
    return {**block, "num_warps": 8 if block["BM"] == 128 else 4, "num_stages": 3}
