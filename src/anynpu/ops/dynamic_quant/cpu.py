# SPDX-License-Identifier: Apache-2.0
"""CPU kernel of dynamic_quant."""

from __future__ import annotations

from anynpu import _native
from anynpu._arguments import takes, tensors_of
from anynpu._repeat import Plan, PlannedKernel
from anynpu.ops.dynamic_quant.spec import MODES, Arguments, outputs

_call = _native.Call("dynamic_quant", tensors=5, scalars="2i")


@takes(Arguments)
def _plan(a: Arguments) -> Plan:
    return _call.plan(tensors_of(a), outputs(a), (MODES.index(a.quant_mode), 0))


dynamic_quant = PlannedKernel(_plan)
