# SPDX-License-Identifier: Apache-2.0
"""moe_finalize_routing of CUDA tensors out of torch operators: one gather and one product a choice."""

from __future__ import annotations

import torch

from anynpu import _device_errors
from anynpu._arguments import takes
from anynpu.ops.moe_finalize_routing.spec import OP, Arguments, sizes

_ROWS = _device_errors.new_rule(OP, "row_idx", "must be a row of expanded_rows, or -1")
_EXPERTS = _device_errors.new_rule(OP, "expert_idx", "must be an expert of bias")


@takes(Arguments)
def moe_finalize_routing(a: Arguments) -> torch.Tensor:
    """See ``anynpu.moe_finalize_routing``."""
    made = sizes(a)
    # Nobody shall wait for the GPU: wrong values are noted there.
    row_idx, expert_idx = _device_errors.within(a.row_idx, -1, made.rows, _ROWS), a.expert_idx
    if a.bias is not None:
        expert_idx = _device_errors.within(expert_idx, 0, len(a.bias), _EXPERTS)
    rows = a.expanded_rows.reshape(made.rows, made.width)
    by_slot = row_idx.view(made.tokens, made.chosen).t()
    by_choice = row_idx.view(made.chosen, made.tokens) if a.drop_pad_mode < 2 else by_slot
    total = torch.zeros(made.tokens, made.width, device=rows.device)
    for skip in (a.skip1, a.skip2):
        if skip is not None:
            total += skip
    for j, index in enumerate(by_choice):
        value = _rows_at(rows, index)
        if a.bias is not None:
            value += a.bias[expert_idx[:, j].long()]
        if a.scales is not None:
            value *= a.scales[:, j, None]
        total += value
    return total.to(a.expanded_rows.dtype)


def _rows_at(rows: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """float32 rows, zero for index -1."""
    if len(rows) == 0:
        return torch.zeros(len(index), rows.shape[1], device=rows.device)
    return rows[index.clamp(min=0).long()].float().masked_fill_((index < 0).unsqueeze(1), 0.0)
