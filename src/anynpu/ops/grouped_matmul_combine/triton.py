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
from anynpu._arguments import takes
from anynpu._triton import (
    HOPPER,
    INTERPRETED,
    capability,
    ceil_divide,
    dot,
    encoded_scale,
    launch,
    nibbles,
    power_of_two,
    report,
    rounded,
    tile,
    with_close_rows,
)
from anynpu._triton_groups import (
    ends_of,
    groups_of,
    halves,
    int8_launch,
    int8_sums,
    place_of,
    programs_for,
    rows_of_groups,
    store_bounds,
)
from anynpu.ops.grouped_matmul_combine.spec import COUNTS, OP, Arguments, output_shape
from anynpu.ops.weight_quant_matmul.spec import is_transposed

_GROUPS = _device_errors.new_rule(OP, "group_list", "must not be negative or decrease, nor go beyond the rows of x")
_ROWS = _device_errors.new_rule(OP, "row_index", "must be a row of y")
_BLOCK = 1024

# How int4 are stored: in int32 words of eight along N, along K, or along K with groups that cut words.
WORDS_N, WORDS_K, CUT_WORDS_K = (tl.constexpr(number) for number in range(3))


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
    if STORED == CUT_WORDS_K:
        k, column = first_k + tl.arange(0, BK)[:, None], first_column + tl.arange(0, BN)[None, :]
        place = (k // 8).to(tl.int64) * k_stride + column.to(tl.int64) * column_stride
        bits = tl.load(weight + place, mask=(k < end) & (column < N), other=0) >> (k % 8 * 4)
    else:
        along_k: tl.constexpr = STORED == WORDS_K
        bits = nibbles(weight, first_k, first_column, end, N, k_stride, column_stride, along_k, WHOLE, BK, BN)
    return (((bits & 15) ^ 8) - 8).to(tl.int8)


@triton.jit
def _int4_kernel(x_ptr, weight_ptr, scale_ptr, bounds_ptr, bias_ptr, offset_ptr, token_ptr, logit_ptr, value_ptr, N,
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
                weight_sums = dot(tl.full((16, BK), -8, tl.int8), b, weight_sums)
                if OFFSET:
                    row_sums += tl.sum(a.to(tl.int32), axis=1)
            scale = tl.load(
                scale_ptr + (its_expert.to(tl.int64) * scale_groups + group) * N + column, mask=column < N, other=0
            )
            sums += tl.max(weight_sums, axis=0)[None, :]  # its rows are alike
            value += sums.to(tl.float32) * encoded_scale(scale)[None, :]
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
def _sixteenfold(codes, UPPER: tl.constexpr):
    """16 times the upper or the lower int4 of each byte, as int8: four at once with 32-bit operations."""
    if INTERPRETED:
        return codes & -16 if UPPER else (codes.to(tl.int32) << 4).to(tl.int8)
    elif UPPER:
        return tl.inline_asm_elementwise("and.b32 $0, $1, 0xF0F0F0F0;", "=r,r", [codes], tl.int8, True, 4)
    else:
        return tl.inline_asm_elementwise("{ .reg .b32 up; shl.b32 up, $1, 4; and.b32 $0, up, 0xF0F0F0F0; }", "=r,r",
                                         [codes], tl.int8, True, 4)  # fmt: skip


@triton.jit
def _bytes_kernel(even_ptr, odd_ptr, bytes_ptr, scale_ptr, bounds_ptr, bias_ptr, token_ptr, logit_ptr, value_ptr, N,
                  half_k, scale_groups, steps, bytes_expert, bytes_column, GROUPED: tl.constexpr, WHOLE: tl.constexpr,
                  BIAS: tl.constexpr, TOKEN: tl.constexpr, LOGIT: tl.constexpr, G: tl.constexpr, GROUPS: tl.constexpr,
                  BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):  # fmt: skip
    """int4 along K, two in a byte: the even columns of x times the lower ones, the odd times the upper ones.

    They go from bytes to the left operand of the tensor cores within a register. ``steps`` of BK bytes make a scale
    group. WHOLE: half of K is a multiple of BK.
    """
    first, end = rows_of_groups(bounds_ptr, G, GROUPS)
    row_tiles, column_tiles = tl.sum(tl.cdiv(end - first, BM), axis=0), tl.cdiv(N, BN)
    SUMS: tl.constexpr = BM if BM <= 32 else 16  # as narrow as they can be, or the same as those of the rows
    eights = tl.full((BK, SUMS), -8, tl.int8)
    k = tl.arange(0, BK)
    for number in range(tl.program_id(0), row_tiles * column_tiles, tl.num_programs(0)):
        its_expert, first_row, end_row = place_of(number // column_tiles, first, end, GROUPS, BM)
        expert, first_column = its_expert.to(tl.int64), number % column_tiles * BN
        row, column = first_row + tl.arange(0, BM), first_column + tl.arange(0, BN)
        in_rows, in_columns = (row < end_row)[None, :], (column < N)[:, None]
        place = row.to(tl.int64)[None, :] * half_k + k[:, None]
        codes = bytes_ptr + expert * bytes_expert + column.to(tl.int64)[:, None] * bytes_column + k[None, :]
        value = tl.zeros((BN, BM), tl.float32)
        sums, weight_sums = tl.zeros((BN, BM), tl.int32), tl.zeros((BN, SUMS), tl.int32)
        for step in range(0, tl.cdiv(half_k, BK)):
            in_k = k < half_k - step * BK
            pairs = tl.load(codes, mask=in_columns if WHOLE else in_columns & in_k[None, :], other=0)
            in_x = in_rows if WHOLE else in_rows & in_k[:, None]
            even = tl.load(even_ptr + place, mask=in_x, other=0)
            odd = tl.load(odd_ptr + place, mask=in_x, other=0)
            lower, upper = _sixteenfold(pairs, False), _sixteenfold(pairs, True)
            if GROUPED:
                sums, weight_sums = tl.zeros((BN, BM), tl.int32), tl.zeros((BN, SUMS), tl.int32)
            sums = dot(upper, odd, dot(lower, even, sums))
            if BM <= 32:
                sums = dot(upper, eights, dot(lower, eights, sums))
            else:
                weight_sums = dot(upper, eights, dot(lower, eights, weight_sums))
            if GROUPED:
                if BM > 32:
                    sums += tl.max(weight_sums, axis=1)[:, None]  # its columns are alike
                scale = tl.load(
                    scale_ptr + (expert * scale_groups + step // steps) * N + column, mask=column < N, other=0
                )
                value += (sums >> 4).to(tl.float32) * encoded_scale(scale)[:, None]
            place += BK
            codes += BK
        if not GROUPED:
            if BM > 32:
                sums += tl.max(weight_sums, axis=1)[:, None]
            scale = tl.load(scale_ptr + expert * N + column, mask=column < N, other=0)
            value = (sums >> 4).to(tl.float32) * encoded_scale(scale)[:, None]
        if BIAS:
            value += tl.load(bias_ptr + expert * N + column, mask=column < N, other=0.0)[:, None]
        if TOKEN:
            value *= tl.load(token_ptr + row, mask=row < end_row, other=0.0)[None, :]
        if LOGIT:
            value *= tl.load(logit_ptr + row, mask=row < end_row, other=0.0)[None, :]
        values = value_ptr + row.to(tl.int64)[None, :] * N + column[:, None]
        tl.store(values, rounded(value, value_ptr.dtype.element_ty), mask=in_rows & in_columns)


@triton.jit
def _store_part(sums, value_ptr, first_row, end_row, first_column, N, scale_ptr, factor_ptr, FACTOR: tl.constexpr):
    """Transposed sums times the factors of columns and rows."""
    own_row, own_column = tl.arange(0, sums.shape[1]), tl.arange(0, sums.shape[0])
    row, column = first_row + own_row, first_column + own_column
    scale = tl.load(scale_ptr + column, mask=column < N, other=0.0).to(tl.float32)
    value = sums.to(tl.float32) * scale[:, None]
    if FACTOR:
        value *= tl.load(factor_ptr + row, mask=row < end_row, other=0.0)[None, :]
    values = value_ptr + (first_row.to(tl.int64) * N + first_column) + (own_row[None, :] * N + own_column[:, None])
    inside = (row < end_row)[None, :] & (column < N)[:, None]
    tl.store(values, rounded(value, value_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _store(sums, value_ptr, first_row, end_row, first_column, N, scale_ptr, factor_ptr, FACTOR: tl.constexpr):
    """As _store_part, of 64 rows at a time where there are more, which then take fewer registers."""
    if sums.shape[1] == 128:
        left, right = halves(sums)
        _store_part(left, value_ptr, first_row, end_row, first_column, N, scale_ptr, factor_ptr, FACTOR)
        _store_part(right, value_ptr, first_row + 64, end_row, first_column, N, scale_ptr, factor_ptr, FACTOR)
    else:
        _store_part(sums, value_ptr, first_row, end_row, first_column, N, scale_ptr, factor_ptr, FACTOR)


@triton.jit
def _int8_kernel(x_ptr, weight_ptr, scale_ptr, bounds_ptr, factor_ptr, value_ptr, N, K, x_row, x_k,
                 weight_expert, weight_k, weight_column, ALONG_K: tl.constexpr, WHOLE: tl.constexpr,
                 FACTOR: tl.constexpr, G: tl.constexpr, GROUPS: tl.constexpr, BM: tl.constexpr, BEHIND: tl.constexpr,
                 BN: tl.constexpr, BK: tl.constexpr):  # fmt: skip
    """Tiles of all experts' rows, shared out among the programs. WHOLE: K is a multiple of BK."""
    first, end = rows_of_groups(bounds_ptr, G, GROUPS)
    row_tiles, column_tiles = tl.sum(tl.cdiv(end - first, BM + BEHIND), axis=0), tl.cdiv(N, BN)
    for number in range(tl.program_id(0), row_tiles * column_tiles, tl.num_programs(0)):
        its_expert, first_row, end_row = place_of(number // column_tiles, first, end, GROUPS, BM + BEHIND)
        first_column, expert = number % column_tiles * BN, its_expert.to(tl.int64)
        weight, scale = weight_ptr + expert * weight_expert, scale_ptr + expert * N
        if BEHIND > 0 and first_row + BM < end_row:
            sums, behind = int8_sums(x_ptr, weight, first_row, end_row, first_column, N, K, x_row, x_k, weight_k,
                                     weight_column, ALONG_K, WHOLE, BM, BEHIND, BN, BK)  # fmt: skip
            _store(behind, value_ptr, first_row + BM, end_row, first_column, N, scale, factor_ptr,
                   FACTOR)  # fmt: skip
        else:
            sums = int8_sums(x_ptr, weight, first_row, end_row, first_column, N, K, x_row, x_k, weight_k,
                             weight_column, ALONG_K, WHOLE, BM, 0, BN, BK)[0]  # fmt: skip
        _store(sums, value_ptr, first_row, end_row, first_column, N, scale, factor_ptr, FACTOR)


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


@takes(Arguments)
def grouped_matmul_combine(a: Arguments) -> torch.Tensor:
    """See ``anynpu.grouped_matmul_combine``; a wrong group_list or row_index is told by ``check_device_errors``."""
    batch, n = output_shape(a)
    x, shared_input = a.x, a.shared_input
    y = x.new_empty((batch, n), dtype=torch.float32)
    if y.numel() == 0:
        return y
    m, experts = x.shape[0], a.weight.shape[0]
    bounds = torch.empty(experts + 1, dtype=torch.int32, device=x.device)
    narrow = torch.int16 if batch < 1 << 15 else torch.int32  # the fewer bits there are, the less there is to sort
    target = torch.empty(m, dtype=narrow, device=x.device)
    launch(_targets_kernel, max(1, ceil_divide(m, _BLOCK)), a.group_list, a.row_index, bounds, target,
           _device_errors.word(x.device), m, batch, RULE=_GROUPS, ROWS=_ROWS, COUNTS=a.group_list_type == COUNTS,
           BLOCK=_BLOCK, **groups_of(experts))  # fmt: skip
    values = x.new_empty((m, n), dtype=torch.float32)
    multiply(values, x, a.weight, a.scale, bounds, bias=a.bias, offset=a.offset, pertoken_scale=a.pertoken_scale,
             logit=a.logit)  # fmt: skip
    by_target = torch.sort(target, stable=True)
    rows = torch.arange(batch + 1, dtype=narrow, device=x.device)
    begin = torch.searchsorted(by_target.values, rows, out_int32=True)
    shared = (y, 0, 0)
    if shared_input is not None:
        shared = (shared_input.contiguous(), shared_input.shape[0], a.shared_input_offset)
    launch(_combine_kernel, batch * ceil_divide(n, _BLOCK), values, by_target.indices, begin, shared[0], y, n,
           *shared[1:], a.shared_input_weight, BLOCK=_BLOCK)  # fmt: skip
    return y


def multiply(
    values: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bounds: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    offset: torch.Tensor | None = None,
    pertoken_scale: torch.Tensor | None = None,
    logit: torch.Tensor | None = None,
) -> None:
    """Into values [M, N] what the experts make of their rows, separated by bounds [E + 1], times the rows' factors."""
    (m, n), k, experts = values.shape, x.shape[1], weight.shape[0]
    x, weight = with_close_rows(x), with_close_rows(weight)
    factors = [factor for factor in (pertoken_scale, logit) if factor is not None]
    if weight.dtype == torch.int8:
        factor = torch.mul(*factors) if len(factors) == 2 else factors[0] if factors else values
        programs, block = int8_launch(m, n, experts, weight)
        launch(_int8_kernel, programs, x, weight, scale, bounds, factor, values, n, k, *x.stride(), *weight.stride(),
               FACTOR=len(factors) > 0, **block)  # fmt: skip
        return
    groups = scale.shape[1]
    stored = WORDS_K if is_transposed(weight, k) else WORDS_N
    if stored == WORDS_K and k // groups % 8:
        stored = CUT_WORDS_K
    words = scale.view(torch.int64) if scale.dtype == torch.uint64 else scale
    whole_groups = groups == 1 or k // groups % 128 == 0
    if stored == WORDS_K and weight.stride(1) == 1 and offset is None and whole_groups:
        _multiply_bytes(values, x, weight.transpose(1, 2).view(torch.int8), words, bounds, bias, pertoken_scale, logit)
        return
    block = _tile(ceil_divide(m, experts), k // groups, x.device)
    programs = programs_for(m, n, experts, block)
    present = [values if value is None else value for value in (bias, offset, pertoken_scale, logit)]
    launch(
        _int4_kernel, programs, x, weight, words, bounds, *present, values, n, groups, k // groups,
        *x.stride(), *weight.stride(), STORED=stored.value, WHOLE=k // groups % block["BK"] == 0,
        BIAS=bias is not None, OFFSET=offset is not None, TOKEN=pertoken_scale is not None,
        LOGIT=logit is not None, PROGRAMS=programs, **groups_of(experts), **block,
    )  # fmt: skip


def _multiply_bytes(values, x, codes, scale, bounds, bias, pertoken_scale, logit) -> None:
    """As multiply for int4 in the bytes ``codes`` [E, N, K / 2]; tiles as were best on an H200."""
    (m, n), (experts, _, half_k), groups = values.shape, codes.shape, scale.shape[1]
    even, odd = x.reshape(m, half_k, 2).permute(2, 0, 1).contiguous()
    present = [values if value is None else value for value in (bias, pertoken_scale, logit)]
    block = {"BM": power_of_two(ceil_divide(m, experts), 16, 64), "BK": 64 if groups > 1 else 128}
    block |= {"BN": 64 if block["BM"] == 16 else 128, "num_warps": 4, "num_stages": 4 if groups > 1 else 3}
    launch(
        _bytes_kernel, programs_for(m, n, experts, block, 4 if block["BM"] == 16 else 2), even, odd, codes, scale,
        bounds, *present, values, n, half_k, groups, half_k // groups // block["BK"], *codes.stride()[:2],
        GROUPED=groups > 1, WHOLE=half_k % block["BK"] == 0, BIAS=bias is not None, TOKEN=pertoken_scale is not None,
        LOGIT=logit is not None, **groups_of(experts), **block,
    )  # fmt: skip


def _tile(rows: int, group: int, device: torch.device) -> dict[str, int]:
    """The tile of int4 weights for so many rows of an expert on average; chosen by reasoning, not yet measured.

    Before Hopper operands take registers too, which suffice for half as many k.
    """
    most_k = 128 if capability(device) >= HOPPER else 64
    block = {"BM": power_of_two(rows, 16, 128), "BN": 64, "BK": power_of_two(group, 32, most_k)}
    return {**block, "num_warps": 8 if block["BM"] == 128 else 4, "num_stages": 3}
