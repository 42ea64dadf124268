# SPDX-License-Identifier: Apache-2.0
"""CUDA kernels of moe_init_routing: torch sorts the slots, a program for each token makes the rows that hold it."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from anynpu._arguments import takes
from anynpu._triton import ceil_divide, launch, power_of_two, rounded
from anynpu.ops.dynamic_quant.triton import codes_of, largest_of_row, part_of_row
from anynpu.ops.moe_init_routing.spec import COUNTS, DYNAMIC, PAIRS, RUNNING_SUMS, STATIC, Arguments, Plan, plan

_BLOCK = 1024


@triton.jit
def _key_kernel(expert_ptr, key_ptr, slots, first_expert, last_key, BLOCK: tl.constexpr):
    """What slots are sorted by: the expert, or ``last_key`` for those before the first or beyond all."""
    slot = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    expert = tl.load(expert_ptr + slot, mask=slot < slots, other=0)
    key = tl.where(expert < first_expert, last_key, tl.minimum(expert, last_key))
    tl.store(key_ptr + slot, key.to(key_ptr.dtype.element_ty), mask=slot < slots)


@triton.jit
def _index_kernel(sorted_ptr, order_ptr, bounds_ptr, row_idx_ptr, slots, first_expert, experts, capacity,
                  PADDED: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """For each slot the row that it goes to, -1 for none."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    routed, row = place < tl.load(bounds_ptr + experts), place
    if PADDED:
        expert = tl.load(sorted_ptr + place, mask=routed, other=0).to(tl.int32) - first_expert
        within = place - tl.load(bounds_ptr + expert, mask=routed, other=0)
        row = expert * capacity + within
        routed &= within < capacity
    slot = tl.load(order_ptr + place, mask=place < slots, other=0)
    tl.store(row_idx_ptr + slot, tl.where(routed, row, -1), mask=place < slots)


@triton.jit
def _token_kernel(x_ptr, expert_ptr, row_idx_ptr, bounds_ptr, scale_ptr, offset_ptr, y_ptr, row_scale_ptr, rows,
                  choices, together, width, first_expert, experts, capacity, x_row, x_column, smooth_row,
                  PADDED: tl.constexpr, SCALE: tl.constexpr, MODE: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """The rows of expanded_x that hold one token, and their scales; ``together`` of its choices have the same row.

    Programs share out the rows that hold none, which are zero.
    """
    token = tl.program_id(0).to(tl.int64)
    x = x_ptr + token * x_row
    for choice in range(0, choices, together):
        slot = token * choices + choice
        scale, smooth = 0.0, scale_ptr
        if MODE == "dynamic":
            expert = tl.minimum(tl.maximum(tl.load(expert_ptr + slot) - first_expert, 0), experts - 1)
            smooth = scale_ptr + expert.to(tl.int64) * smooth_row
            scale = tl.div_rn(largest_of_row(x, smooth, width, x_column, SCALE, BLOCK), 127.0)
        elif MODE == "none" and SCALE:
            scale = tl.load(scale_ptr + token)
        for first in range(0, width, BLOCK):
            column = first + tl.arange(0, BLOCK)
            inside = column < width
            if MODE == "none":
                value = tl.load(x + column.to(tl.int64) * x_column, mask=inside, other=0)
            elif MODE == "static":
                # The product is exact in float64: rounding it keeps the compiler from joining it with the sum.
                product = tl.load(x + column.to(tl.int64) * x_column, mask=inside, other=0.0).to(tl.float64)
                product *= tl.load(scale_ptr).to(tl.float64)
                value = rounded(product.to(tl.float32) + tl.load(offset_ptr), tl.int8)
            else:
                value = codes_of(part_of_row(x, smooth, column, width, x_column, SCALE), scale).to(tl.int8)
            for its_slot in range(slot, slot + together):
                row = tl.load(row_idx_ptr + its_slot)
                if row >= 0 and row < rows:
                    tl.store(y_ptr + row.to(tl.int64) * width + column, value, mask=inside)
                    tl.store(row_scale_ptr + row, scale)
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        if PADDED:
            place = tl.load(bounds_ptr + row // capacity) + row % capacity
            filled = place < tl.load(bounds_ptr + row // capacity + 1)
        else:
            filled = row < tl.load(bounds_ptr + experts)
        if not filled:
            tl.store(row_scale_ptr + row, 0.0)
            for first in range(0, width, BLOCK):
                column = first + tl.arange(0, BLOCK)
                zero = tl.zeros((BLOCK,), y_ptr.dtype.element_ty)
                tl.store(y_ptr + (tl.zeros((), tl.int64) + row) * width + column, zero, mask=column < width)


@takes(Arguments)
def moe_init_routing(a: Arguments) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """See ``anynpu.moe_init_routing``."""
    made = plan(a)
    x, padded = a.x, a.drop_pad_mode == 1
    ids = a.expert_idx.reshape(-1).contiguous()
    # The fewer bits keys have, the less there is to sort.
    dtype = next(each for each in (torch.uint8, torch.int16, torch.int32) if a.expert_num <= torch.iinfo(each).max)
    keys = torch.empty(ids.shape, dtype=dtype, device=x.device)
    launch(_key_kernel, ceil_divide(made.row_idx, _BLOCK), ids, keys, made.row_idx, made.first, torch.iinfo(dtype).max,
           BLOCK=_BLOCK)  # fmt: skip
    by_expert = torch.sort(keys, stable=True)
    range_ = torch.arange(made.first, made.last + 1, dtype=dtype, device=x.device)
    bounds = torch.searchsorted(by_expert.values, range_, out_int32=True)
    expanded_x = x.new_empty(made.expanded_x, dtype=made.dtype)
    expanded_scale = x.new_empty(made.rows, dtype=torch.float32)
    sorted_slots = (by_expert.values, by_expert.indices, bounds)
    places = (made.first, made.last - made.first, a.expert_capacity)
    parameters = [expanded_scale if value is None else value.contiguous() for value in (a.scale, a.offset)]
    row_idx = torch.empty(made.row_idx, dtype=torch.int32, device=x.device)
    launch(_index_kernel, ceil_divide(made.row_idx, _BLOCK), *sorted_slots, row_idx, made.row_idx, *places,
           PADDED=padded, BLOCK=_BLOCK)  # fmt: skip
    smooth_row = x.shape[1] if a.quant_mode == DYNAMIC and a.scale is not None and a.scale.shape[0] > 1 else 0
    choices, block = a.expert_idx.shape[1], power_of_two(x.shape[1], 16, 4096)
    launch(
        _token_kernel, x.shape[0], x, ids, row_idx, bounds, *parameters, expanded_x, expanded_scale, made.rows, choices,
        1 if smooth_row else max(1, choices), x.shape[1], *places, *x.stride(), smooth_row, PADDED=padded,
        SCALE=a.scale is not None, MODE={STATIC: "static", DYNAMIC: "dynamic"}.get(a.quant_mode, "none"), BLOCK=block,
        num_warps=max(1, min(block // 512, 8)),
    )  # fmt: skip
    kind = COUNTS if padded else a.expert_tokens_num_type
    tokens = _expert_tokens(bounds.long(), made, kind)
    return expanded_x, by_expert.indices.int() if a.row_idx_type == 1 else row_idx, tokens, expanded_scale


def _expert_tokens(bounds: torch.Tensor, made: Plan, kind: int) -> torch.Tensor:
    if kind == RUNNING_SUMS:
        return bounds[1:]
    counts = bounds.diff()
    if kind != PAIRS:
        return counts
    experts = torch.arange(made.first, made.last, device=bounds.device)
    pairs = torch.stack([torch.where(counts > 0, experts, 0), counts], 1)
    busy_first = torch.sort((counts == 0).int(), stable=True).indices
    return torch.cat([pairs[busy_first], pairs.new_zeros(made.tokens[0] - len(counts), 2)])
