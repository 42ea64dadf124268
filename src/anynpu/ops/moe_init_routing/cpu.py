# SPDX-License-Identifier: Apache-2.0
"""CPU kernel of moe_init_routing."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from anynpu import _native
from anynpu.ops.moe_init_routing.spec import plan

_call = _native.Call("moe_init_routing", tensors=8, scalars="3q4i")


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
    """See ``anynpu.moe_init_routing``."""
    made = plan(
        x, expert_idx, scale, offset, active_num, expert_capacity, expert_num, drop_pad_mode,
        expert_tokens_num_type, quant_mode, active_expert_range, row_idx_type,
    )  # fmt: skip
    results = (
        torch.empty(made.expanded_x, dtype=made.dtype),
        torch.empty(made.row_idx, dtype=torch.int32),
        torch.empty(made.tokens, dtype=torch.int64),
        torch.empty(made.rows, dtype=torch.float32),
    )
    inputs = [None if tensor is None else tensor.contiguous() for tensor in (x, expert_idx, scale, offset)]
    modes = (drop_pad_mode, expert_tokens_num_type, quant_mode, row_idx_type)
    _call(*inputs, *results, scalars=(expert_num, made.first, made.last, *modes))
    return results
