# SPDX-License-Identifier: Apache-2.0
"""CPU kernel of fused_attention."""

from __future__ import annotations

import torch

from anynpu import _native
from anynpu._arguments import takes, tensors_of
from anynpu._repeat import Plan, PlannedKernel
from anynpu.ops.fused_attention.spec import Arguments, check, head_size

_call = _native.Call("fused_attention", tensors=20, scalars="qqfiii")


@takes(Arguments)
def _plan(a: Arguments) -> Plan:
    check(a)
    shape = a.q.shape[:3]
    outputs = [((*shape, head_size(a.v)), a.out_dtype), (shape, torch.float32) if a.with_lse else None]
    run = _call.plan(tensors_of(a), outputs, (a.before, a.after, a.scale, a.from_end, a.packed, 0))
    if a.with_lse:
        return run
    return lambda *present: (run(*present), _native.allocate((0,), (1,), torch.float32))


fused_attention = PlannedKernel(_plan)
