# SPDX-License-Identifier: Apache-2.0
"""CPU kernel of moe_gating_topk."""

from __future__ import annotations

import torch

from anynpu import _native
from anynpu._arguments import takes, with_tensors
from anynpu._repeat import Plan, PlannedKernel
from anynpu.ops.moe_gating_topk import composite
from anynpu.ops.moe_gating_topk.spec import Arguments, check

_call = _native.Call("moe_gating_topk", tensors=5, scalars="qqiiff")


@takes(Arguments)
def _plan(a: Arguments) -> Plan:
    check(a)
    if a.input_ids is not None:
        call = with_tensors(a)  # experts by token id: nothing is chosen
        return lambda *tensors: composite.moe_gating_topk(*call(*tensors))
    chosen = (a.x.shape[0], a.k)
    outputs = [(chosen, a.x.dtype), (chosen, torch.int32), (a.x.shape, torch.float32)]
    modes = (a.k_group, a.group_count, a.group_select_mode, a.norm_type, a.routed_scaling_factor, a.eps)
    return _call.plan_of_contiguous((a.x, a.bias), outputs, modes)


moe_gating_topk = PlannedKernel(_plan)
