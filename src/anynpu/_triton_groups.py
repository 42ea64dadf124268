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
from anynpu._triton import ceil_divide, launch, power_of_two, report

_PROGRAMS = 264  # two for each processor of an H100 or H200


def groups_of(count: int) -> dict[str, int]:
    """The number of groups, and of the elements that hold one each, as kernels take them."""
    return {"G": count, "GROUPS": power_of_two(count, 1, 1 << 20)}


def programs_for(rows: int, columns: int, groups: int, block: dict[str, int]) -> int:
    """How many programs share out the tiles: no more than there can be."""
    return min(_PROGRAMS, (ceil_divide(rows, block["BM"]) + groups) * ceil_divide(columns, block["BN"]))


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
