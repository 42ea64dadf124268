# SPDX-License-Identifier: Apache-2.0
"""CPU kernel of moe_finalize_routing."""

from __future__ import annotations

import torch

from anynpu import _native
from anynpu._repeat import Plan, PlannedKernel
from anynpu.ops.moe_finalize_routing.spec import sizes

_call = _native.Call("moe_finalize_routing", tensors=8, scalars="q")


def _plan(
    expanded_rows: torch.Tensor,
    skip1: torch.Tensor | None,
    skip2: torch.Tensor | None,
    bias: torch.Tensor | None,
    scales: torch.Tensor | None,
    row_idx: torch.Tensor,
    expert_idx: torch.Tensor | None = None,
    drop_pad_mode: int = 0,
    k: int = 1,
) -> Plan:
    tensors = (expanded_rows, skip1, skip2, bias, scales, row_idx, expert_idx)
    made = sizes(*tensors, drop_pad_mode, k)
    return _call.plan_of_contiguous(tensors, [([made.tokens, made.width], expanded_rows.dtype)], (drop_pad_mode,))


moe_finalize_routing = PlannedKernel(_plan)
