# SPDX-License-Identifier: Apache-2.0
"""CPU kernel of quantize."""

from __future__ import annotations

from anynpu import _native
from anynpu._arguments import takes, tensors_of
from anynpu._repeat import Plan, PlannedKernel
from anynpu.ops.quantize.spec import Arguments, output

_call = _native.Call("quantize", tensors=4, scalars="q2i")


@takes(Arguments)
def _plan(a: Arguments) -> Plan:
    return _call.plan(tensors_of(a), [output(a)], (a.axis, a.div_mode, 0))


quantize = PlannedKernel(_plan)
