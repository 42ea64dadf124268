# SPDX-License-Identifier: Apache-2.0
"""CPU kernel of grouped_matmul_combine."""

from __future__ import annotations

import torch

from anynpu import _native
from anynpu._repeat import Plan, PlannedKernel
from anynpu.ops.grouped_matmul_combine.spec import COUNTS, output_shape

_call = _native.Call("grouped_matmul_combine", tensors=11, scalars="qfi")


def _plan(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    group_list: torch.Tensor,
    row_index: torch.Tensor,
    bias: torch.Tensor | None = None,
    offset: torch.Tensor | None = None,
    pertoken_scale: torch.Tensor | None = None,
    logit: torch.Tensor | None = None,
    shared_input: torch.Tensor | None = None,
    shared_input_weight: float = 1.0,
    shared_input_offset: int = 0,
    output_bs: int = 0,
    group_list_type: int = COUNTS,
) -> Plan:
    tensors = (x, weight, scale, group_list, row_index, bias, offset, pertoken_scale, logit, shared_input)
    shape = output_shape(*tensors, shared_input_weight, shared_input_offset, output_bs, group_list_type)
    scalars = (shared_input_offset, shared_input_weight, group_list_type)
    return _call.plan(tensors, [(shape, torch.float32)], scalars)


grouped_matmul_combine = PlannedKernel(_plan)


def grouped_sums(x: torch.Tensor, weight: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """int32 ``[M, N]``: the int8 rows of each group times its weight, zeros behind the last group."""
    y = torch.empty(x.shape[0], weight.shape[2], dtype=torch.int32)
    _call(x, weight, None, counts, *[None] * 6, y, scalars=(0, 1.0, COUNTS))
    return y
