# SPDX-License-Identifier: Apache-2.0
"""CPU kernel of quant_matmul."""

from __future__ import annotations

from anynpu import _native
from anynpu._arguments import takes, tensors_of
from anynpu._repeat import Plan, PlannedKernel
from anynpu.ops.quant_matmul.spec import Arguments, output_shape

_call = _native.Call("quant_matmul", tensors=7, scalars="q")


@takes(Arguments)
def _plan(a: Arguments) -> Plan:
    return _call.plan(tensors_of(a), [(output_shape(a), a.dtype)], (a.group_size,))


quant_matmul = PlannedKernel(_plan)
