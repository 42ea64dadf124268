# SPDX-License-Identifier: Apache-2.0
"""CPU kernel of kv_cache_attention."""

from __future__ import annotations

from anynpu import _native
from anynpu._arguments import takes, tensors_of
from anynpu._repeat import Plan, PlannedKernel
from anynpu.ops.kv_cache_attention.spec import Arguments, check

_call = _native.Call("kv_cache_attention", tensors=11, scalars="fi")


@takes(Arguments)
def _plan(a: Arguments) -> Plan:
    check(a)
    return _call.plan(tensors_of(a), [(a.q.shape, a.q.dtype)], (a.scale, a.causal))


kv_cache_attention = PlannedKernel(_plan)
