# SPDX-License-Identifier: Apache-2.0
"""moe_finalize_routing of CUDA tensors out of torch operators: one gather and one product a choice."""

from __future__ import annotations

import torch

from anynpu import _device_errors
from anynpu.ops.moe_finalize_routing.spec import OP, sizes

_ROWS = _device_errors.new_rule(OP, "row_idx", "must be a row of expanded_rows, or -1")
_EXPERTS = _device_errors.new_rule(OP, "expert_idx", "must be an expert of bias")


def moe_finalize_routing(
    expanded_rows: torch.Tensor,
    skip1: torch.Tensor | None,
    skip2: torch.Tensor | None,
    bias: torch.Tensor | None,
    scales: torch.Tensor | None,
    row_idx: torch.Tensor,
    expert_idx: torch.Tensor | None = None,
    drop_pad_mode: int = 0,
    k: int = 1,
) -> torch.Tensor:
    """See ``anynpu.moe_finalize_routing``."""
    made = sizes(expanded_rows, skip1, skip2, bias, scales, row_idx, expert_idx, drop_pad_mode, k)
    # Nobody shall wait for the GPU: wrong values are noted there.
    row_idx = _device_errors.within(row_idx, -1, made.rows, _ROWS)
    if bias is not None:
        expert_idx = _device_errors.within(expert_idx, 0, len(bias), _EXPERTS)
    rows = expanded_rows.reshape(made.rows, made.width)
    by_slot = row_idx.view(made.tokens, made.chosen).t()
    by_choice = row_idx.view(made.chosen, made.tokens) if drop_pad_mode < 2 else by_slot
    total = torch.zeros(made.tokens, made.width, device=rows.device)
    for skip in (skip1, skip2):
        if skip is not None:
            total += skip
    for j, index in enumerate(by_choice):
        value = _rows_at(rows, index)
        if bias is not None:
            value += bias[expert_idx[:, j].long()]
        if scales is not None:
            value *= scales[:, j, None]
        total += value
    return total.to(expanded_rows.dtype)


def _rows_at(rows: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """float32 rows, zero for index -1."""
    if len(rows) == 0:
        return torch.zeros(len(index), rows.shape[1], device=rows.device)
    return rows[index.clamp(min=0).long()].float().masked_fill_((index < 0).unsqueeze(1), 0.0)
