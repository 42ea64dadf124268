# SPDX-License-Identifier: Apache-2.0
"""CPU kernel of grouped_matmul_combine."""

from __future__ import annotations

import torch

from anynpu import _native
from anynpu._arguments import takes, tensors_of
from anynpu._repeat import Plan, PlannedKernel
from anynpu.ops.grouped_matmul_combine.spec import COUNTS, Arguments, output_shape

_call = _native.Call("grouped_matmul_combine", tensors=11, scalars="qfi")


@takes(Arguments)
def _plan(a: Arguments) -> Plan:
    scalars = (a.shared_input_offset, a.shared_input_weight, a.group_list_type)
    return _call.plan(tensors_of(a), [(output_shape(a), torch.float32)], scalars)


grouped_matmul_combine = PlannedKernel(_plan)


def grouped_sums(x: torch.Tensor, weight: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """int32 ``[M, N]``: the int8 rows of each group times its weight, zeros behind the last group."""
    y = torch.empty(x.shape[0], weight.shape[2], dtype=torch.int32)
    _call(x, weight, None, counts, *[None] * 6, y, scalars=(0, 1.0, COUNTS))
    return y
