# SPDX-License-Identifier: Apache-2.0
"""Oracle of moe_init_routing: a stable sort, and the float32 arithmetic of the document, operation by operation."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from anynpu.ops.dynamic_quant.reference import dynamic_quant
from anynpu.ops.moe_init_routing.spec import DYNAMIC, PAIRS, RUNNING_SUMS, STATIC, Plan, plan

_LAST = 2**31 - 1


def _sorted_slots(expert_idx: torch.Tensor, made: Plan) -> tuple[torch.Tensor, torch.Tensor]:
    """The slots in the order of their experts, and how many each expert of the range has."""
    ids = expert_idx.flatten().long()
    order = torch.where(ids < made.first, _LAST, ids).argsort(stable=True)
    counts = torch.tensor([int((ids == expert).sum()) for expert in range(made.first, made.last)])
    return order, counts


def _expert_tokens(counts: torch.Tensor, made: Plan, drop_pad_mode: int, kind: int) -> torch.Tensor:
    if kind == RUNNING_SUMS and drop_pad_mode == 0:
        return counts.cumsum(0)
    if kind != PAIRS:
        return counts
    pairs = torch.zeros(made.tokens, dtype=torch.int64)
    busy = counts.nonzero().flatten()
    pairs[: len(busy)] = torch.stack([busy + made.first, counts[busy]], dim=1)
    return pairs


def _slot_of_each_row(order, counts, made: Plan, drop_pad_mode: int) -> torch.Tensor:
    """For each row of expanded_x the slot whose token it holds, or -1."""
    slots = torch.full((made.rows,), -1)
    if drop_pad_mode == 0:
        filled = min(int(counts.sum()), made.rows)
        slots[:filled] = order[:filled]
        return slots
    capacity = made.expanded_x[1]
    for expert, own in enumerate(order[: int(counts.sum())].split(counts.tolist())):
        kept = own[:capacity]
        slots[expert * capacity : expert * capacity + len(kept)] = kept
    return slots


def _quantised(rows, experts, token, scale, offset, quant_mode) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of x as the operator returns them, and their scales; ``experts`` counts from the first of the range."""
    none = torch.zeros(len(rows))
    if quant_mode == STATIC:
        codes = (rows.float() * scale + offset).nan_to_num(nan=0.0).round().clamp(-128, 127)
        return codes.to(torch.int8), none
    if quant_mode == DYNAMIC:
        smooth = torch.ones(1, rows.shape[1]) if scale is None else scale
        return dynamic_quant(rows.float() * smooth[experts if len(smooth) > 1 else torch.zeros_like(experts)])
    return rows, none if scale is None else scale[token]


def moe_init_routing(
    x: torch.Tensor,
    expert_idx: torch.Tensor,
    scale: torch.Tensor | None = None,
    offset: torch.Tensor | None = None,
    active_num: int = -1,
    expert_capacity: int = -1,
    expert_num: int = -1,
    drop_pad_mode: int = 0,
    expert_tokens_num_type: int = 0,
    quant_mode: int = -1,
    active_expert_range: Sequence[int] | None = None,
    row_idx_type: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens sorted by their experts."""
    made = plan(
        x, expert_idx, scale, offset, active_num, expert_capacity, expert_num, drop_pad_mode,
        expert_tokens_num_type, quant_mode, active_expert_range, row_idx_type,
    )  # fmt: skip
    order, counts = _sorted_slots(expert_idx, made)
    tokens = _expert_tokens(counts, made, drop_pad_mode, expert_tokens_num_type)
    slots = _slot_of_each_row(order, counts, made, drop_pad_mode)
    filled = (slots >= 0).nonzero().flatten()
    token = slots[filled] // max(expert_idx.shape[1], 1)
    experts = expert_idx.flatten()[slots[filled]].long() - made.first
    expanded_x = torch.zeros(made.rows, x.shape[1], dtype=made.dtype)
    expanded_scale = torch.zeros(made.rows)
    expanded_x[filled], expanded_scale[filled] = _quantised(x[token], experts, token, scale, offset, quant_mode)
    if row_idx_type == 1:
        row_idx = order
    else:
        row_idx = torch.full((made.row_idx,), -1)
        routed = order[: int(counts.sum())]
        row_idx[routed] = torch.arange(len(routed))
        if drop_pad_mode == 1:
            row_idx.fill_(-1)[slots[filled]] = filled
    return expanded_x.reshape(made.expanded_x), row_idx.int(), tokens, expanded_scale
