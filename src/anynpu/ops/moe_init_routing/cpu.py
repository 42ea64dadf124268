# SPDX-License-Identifier: Apache-2.0
"""CPU kernel of moe_init_routing."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from anynpu import _native
from anynpu._repeat import Plan, PlannedKernel
from anynpu.ops.moe_init_routing.spec import plan

_call = _native.Call("moe_init_routing", tensors=8, scalars="3q4i")


def _plan(
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
) -> Plan:
    made = plan(
        x, expert_idx, scale, offset, active_num, expert_capacity, expert_num, drop_pad_mode,
        expert_tokens_num_type, quant_mode, active_expert_range, row_idx_type,
    )  # fmt: skip
    outputs = [
        (made.expanded_x, made.dtype),
        ([made.row_idx], torch.int32),
        (made.tokens, torch.int64),
        ([made.rows], torch.float32),
    ]
    modes = (drop_pad_mode, expert_tokens_num_type, quant_mode, row_idx_type)
    inputs = (x, expert_idx, scale, offset)
    return _call.plan_of_contiguous(inputs, outputs, (expert_num, made.first, made.last, *modes))


moe_init_routing = PlannedKernel(_plan)
