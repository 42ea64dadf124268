# SPDX-License-Identifier: Apache-2.0
"""CPU kernel of moe_finalize_routing."""

from __future__ import annotations

from anynpu import _native
from anynpu._arguments import takes, tensors_of
from anynpu._repeat import Plan, PlannedKernel
from anynpu.ops.moe_finalize_routing.spec import Arguments, sizes

_call = _native.Call("moe_finalize_routing", tensors=8, scalars="q")


@takes(Arguments)
def _plan(a: Arguments) -> Plan:
    made = sizes(a)
    return _call.plan_of_contiguous(
        tensors_of(a), [([made.tokens, made.width], a.expanded_rows.dtype)], (a.drop_pad_mode,)
    )


moe_finalize_routing = PlannedKernel(_plan)
