# SPDX-License-Identifier: Apache-2.0
"""Rows in groups whose sizes only the GPU knows: where each group is, and which tiles of rows there are.

The rows of group g are [bounds[g], bounds[g + 1]) of an int32 tensor of G + 1; what comes after the last group belongs
to none. Programs that stay for the whole call share out the tiles.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from anynpu import _device_errors
from anynpu._triton import PROCESSORS, ceil_divide, dot, launch, power_of_two, report, tile


def groups_of(count: int) -> dict[str, int]:
    """The number of groups, and of the elements that hold one each, as kernels take them."""
    return {"G": count, "GROUPS": power_of_two(count, 1, 1 << 20)}


def programs_for(rows: int, columns: int, groups: int, block: dict[str, int], each: int = 2) -> int:
    """How many programs share out the tiles: ``each`` for a processor, no more than there can be tiles."""
    most = (ceil_divide(rows, block["BM"]) + groups) * ceil_divide(columns, block["BN"])
    return min(each * PROCESSORS, most)


def int8_launch(m: int, n: int, groups: int, weight: torch.Tensor) -> tuple[int, dict[str, int]]:
    """The programs for m int8 rows of groups, and their tiles and how they multiply: as was best on an H200.

    Weights along K are the left operand, of which there are 64 for each instruction however few the rows are. Groups
    of many rows have some more or fewer than the average, for which tiles have rows behind.
    """
    height = power_of_two(ceil_divide(m, groups), 16, 128)
    if weight.stride(1) != 1:
        block = {"BM": height, "BEHIND": 0, "BN": 128, "num_warps": 8 if height == 128 else 4, "num_stages": 3}
        each = 2
    elif height == 128:
        block, each = {"BM": 128, "BEHIND": 32, "BN": 128, "num_warps": 8, "num_stages": 5}, 1
    else:
        block = {"BM": height, "BEHIND": 0, "BN": 64 if height == 16 else 128, "num_warps": 4, "num_stages": 4}
        each = 4
    block |= {"BK": 128, "WHOLE": weight.shape[1] % 128 == 0, "ALONG_K": weight.stride(1) == 1, **groups_of(groups)}
    return programs_for(m, n, groups, block, each), block


def bounds_of(group_list: torch.Tensor, rows: int, rule: int, counts: bool) -> torch.Tensor:
    """The bounds of groups given by their sizes (``counts``) or ends; ``rule`` is broken where they do not fit."""
    groups = group_list.shape[0]
    bounds = torch.empty(groups + 1, dtype=torch.int32, device=group_list.device)
    launch(_bounds_kernel, 1, group_list.contiguous(), bounds, _device_errors.word(group_list.device), rows, RULE=rule,
           COUNTS=counts, **groups_of(groups))  # fmt: skip
    return bounds


@triton.jit
def _bounds_kernel(group_list_ptr, bounds_ptr, error_ptr, rows, RULE: tl.constexpr, COUNTS: tl.constexpr,
                   G: tl.constexpr, GROUPS: tl.constexpr):  # fmt: skip
    store_bounds(bounds_ptr, ends_of(group_list_ptr, error_ptr, rows, RULE, COUNTS, G, GROUPS), G, GROUPS)


@triton.jit
def ends_of(group_list_ptr, error_ptr, rows, RULE: tl.constexpr, COUNTS: tl.constexpr, G: tl.constexpr,
            GROUPS: tl.constexpr):  # fmt: skip
    """Behind the last row of each group; all 0 if the list is wrong."""
    group = tl.arange(0, GROUPS)
    entry = tl.load(group_list_ptr + group, mask=group < G, other=0)
    entry = tl.minimum(tl.maximum(entry, -1), tl.zeros((), tl.int64) + rows + 1)  # so that sums cannot overflow
    if COUNTS:
        end = tl.cumsum(tl.maximum(entry, 0), axis=0)
        wrong = (entry < 0) | (end > rows)
    else:
        before = tl.load(group_list_ptr + group - 1, mask=(group > 0) & (group < G), other=0)
        end, wrong = entry, (entry < before) | (entry < 0) | (entry > rows)
    wrong &= group < G
    report(error_ptr, RULE, wrong, group)
    return tl.where(tl.sum(wrong.to(tl.int32), axis=0) > 0, 0, end).to(tl.int32)


@triton.jit
def store_bounds(bounds_ptr, end, G: tl.constexpr, GROUPS: tl.constexpr):
    """The bounds of groups with these ends."""
    group = tl.arange(0, GROUPS)
    tl.store(bounds_ptr + 1 + group, end, mask=group < G)
    tl.store(bounds_ptr, 0)


@triton.jit
def rows_of_groups(bounds_ptr, G: tl.constexpr, GROUPS: tl.constexpr):
    """(the first row of each group, behind its last)."""
    group = tl.arange(0, GROUPS)
    first = tl.load(bounds_ptr + group, mask=group < G, other=0)
    return first, tl.load(bounds_ptr + 1 + group, mask=group < G, other=0)


@triton.jit
def place_of(row_tile, first, end, GROUPS: tl.constexpr, BM: tl.constexpr):
    """(the group of a tile of rows, the tile's first row, behind the group's last)."""
    tiles = tl.cdiv(end - first, BM)
    tiles_so_far = tl.cumsum(tiles, axis=0)
    group = tl.sum((tiles_so_far <= row_tile).to(tl.int32), axis=0)
    this = tl.arange(0, GROUPS) == group
    within = row_tile - tl.sum(tl.where(this, tiles_so_far - tiles, 0), axis=0)
    return group, tl.sum(tl.where(this, first, 0), axis=0) + within * BM, tl.sum(tl.where(this, end, 0), axis=0)


@triton.jit
def int8_sums(x_ptr, weight_ptr, first_row, end_row, first_column, N, K, x_row, x_k, weight_k, weight_column,
              ALONG_K: tl.constexpr, WHOLE: tl.constexpr, BM: tl.constexpr, BEHIND: tl.constexpr, BN: tl.constexpr,
              BK: tl.constexpr):  # fmt: skip
    """int32 [BN, BM], transposed: the products of a tile of int8 rows. And [BN, BEHIND], of the rows behind it: weights
    are read once for both. WHOLE: K is a multiple of BK. Only for weights ALONG_K can rows be behind."""
    sums, other_sums = tl.zeros((BN, BM), tl.int32), tl.zeros((BN, BEHIND if BEHIND > 0 else BM), tl.int32)
    if ALONG_K:
        k, column, row = tl.arange(0, BK), tl.arange(0, BN), tl.arange(0, BM)
        other = BM + tl.arange(0, other_sums.shape[1])
        wide = tl.zeros((), tl.int64)
        rows = x_ptr + (wide + first_row) * x_row
        x, behind = rows + (k[:, None] * x_k + row[None, :] * x_row), rows + (k[:, None] * x_k + other[None, :] * x_row)
        weight = weight_ptr + (wide + first_column) * weight_column
        weight += column[:, None] * weight_column + k[None, :] * weight_k
        in_x, in_behind = (row < end_row - first_row)[None, :], (other < end_row - first_row)[None, :]
        in_weight = (column < N - first_column)[:, None]
        for step in range(0, tl.cdiv(K, BK)):
            in_k = k < K - step * BK
            a = tl.load(weight, mask=in_weight if WHOLE else in_weight & in_k[None, :], other=0)
            sums = dot(a, tl.load(x, mask=in_x if WHOLE else in_x & in_k[:, None], other=0), sums)
            if BEHIND > 0:
                b = tl.load(behind, mask=in_behind if WHOLE else in_behind & in_k[:, None], other=0)
                other_sums = dot(a, b, other_sums)
            weight += BK * weight_k
            x += BK * x_k
            behind += BK * x_k
    else:
        straight = tl.zeros((BM, BN), tl.int32)
        for first_k in range(0, K, BK):
            a = tile(x_ptr, first_row, first_k, end_row, K, x_row, x_k, False, WHOLE, BM, BK)
            b = tile(weight_ptr, first_k, first_column, K, N, weight_k, weight_column, WHOLE, False, BK, BN)
            straight = dot(a, b, straight)
        sums = tl.trans(straight)
    return sums, other_sums


@triton.jit
def store_zeros(y_ptr, first_row, end_row, N, BLOCK: tl.constexpr):
    """The rows [first_row, end_row) of y, shared out among the programs."""
    for row in range(first_row + tl.program_id(0), end_row, tl.num_programs(0)):
        for first in range(0, N, BLOCK):
            column = first + tl.arange(0, BLOCK)
            place = (tl.zeros((), tl.int64) + row) * N + column
            tl.store(y_ptr + place, tl.zeros((BLOCK,), y_ptr.dtype.element_ty), mask=column < N)


@triton.jit
def halves(sums):
    """The left and the right half of the columns."""
    return tl.split(tl.permute(tl.reshape(sums, (sums.shape[0], 2, sums.shape[1] // 2)), (0, 2, 1)))
