# SPDX-License-Identifier: Apache-2.0
"""CPU kernel of moe_init_routing."""

from __future__ import annotations

import torch

from anynpu import _native
from anynpu._arguments import takes, tensors_of
from anynpu._repeat import Plan, PlannedKernel
from anynpu.ops.moe_init_routing.spec import Arguments, plan

_call = _native.Call("moe_init_routing", tensors=8, scalars="3q4i")


@takes(Arguments)
def _plan(a: Arguments) -> Plan:
    made = plan(a)
    outputs = [
        (made.expanded_x, made.dtype),
        ([made.row_idx], torch.int32),
        (made.tokens, torch.int64),
        ([made.rows], torch.float32),
    ]
    modes = (a.drop_pad_mode, a.expert_tokens_num_type, a.quant_mode, a.row_idx_type)
    return _call.plan_of_contiguous(tensors_of(a), outputs, (a.expert_num, made.first, made.last, *modes))


moe_init_routing = PlannedKernel(_plan)
