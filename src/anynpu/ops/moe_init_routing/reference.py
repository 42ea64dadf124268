# SPDX-License-Identifier: Apache-2.0
"""Oracle of moe_init_routing: a stable sort, and the float32 arithmetic of the document, operation by operation."""

from __future__ import annotations

import torch

from anynpu._arguments import takes
from anynpu.ops.dynamic_quant.reference import dynamic_quant
from anynpu.ops.moe_init_routing.spec import DYNAMIC, PAIRS, RUNNING_SUMS, STATIC, Arguments, Plan, plan

_LAST = 2**31 - 1


def _sorted_slots(expert_idx: torch.Tensor, made: Plan) -> tuple[torch.Tensor, torch.Tensor]:
    """The slots in the order of their experts, and how many each expert of the range has."""
    ids = expert_idx.flatten().long()
    order = torch.where(ids < made.first, _LAST, ids).argsort(stable=True)
    counts = torch.tensor([int((ids == expert).sum()) for expert in range(made.first, made.last)])
    return order, counts


def _expert_tokens(a: Arguments, counts: torch.Tensor, made: Plan) -> torch.Tensor:
    if a.expert_tokens_num_type == RUNNING_SUMS and a.drop_pad_mode == 0:
        return counts.cumsum(0)
    if a.expert_tokens_num_type != PAIRS:
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


def _quantised(a: Arguments, token: torch.Tensor, experts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows of tokens as the operator returns them, and their scales; ``experts`` count from the range's first."""
    rows, none = a.x[token], torch.zeros(len(token))
    if a.quant_mode == STATIC:
        codes = (rows.float() * a.scale + a.offset).nan_to_num(nan=0.0).round().clamp(-128, 127)
        return codes.to(torch.int8), none
    if a.quant_mode == DYNAMIC:
        smooth = torch.ones(1, rows.shape[1]) if a.scale is None else a.scale
        return dynamic_quant(rows.float() * smooth[experts if len(smooth) > 1 else torch.zeros_like(experts)])
    return rows, none if a.scale is None else a.scale[token]


@takes(Arguments)
def moe_init_routing(a: Arguments) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens sorted by their experts."""
    made = plan(a)
    order, counts = _sorted_slots(a.expert_idx, made)
    slots = _slot_of_each_row(order, counts, made, a.drop_pad_mode)
    filled = (slots >= 0).nonzero().flatten()
    token = slots[filled] // max(a.expert_idx.shape[1], 1)
    experts = a.expert_idx.flatten()[slots[filled]].long() - made.first
    expanded_x = torch.zeros(made.rows, a.x.shape[1], dtype=made.dtype)
    expanded_scale = torch.zeros(made.rows)
    expanded_x[filled], expanded_scale[filled] = _quantised(a, token, experts)
    if a.row_idx_type == 1:
        row_idx = order
    else:
        row_idx = torch.full((made.row_idx,), -1)
        routed = order[: int(counts.sum())]
        row_idx[routed] = torch.arange(len(routed))
        if a.drop_pad_mode == 1:
            row_idx.fill_(-1)[slots[filled]] = filled
    return expanded_x.reshape(made.expanded_x), row_idx.int(), _expert_tokens(a, counts, made), expanded_scale
