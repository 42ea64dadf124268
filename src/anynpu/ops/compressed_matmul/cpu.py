# SPDX-License-Identifier: Apache-2.0
"""CPU kernel of compressed_matmul."""

from __future__ import annotations

from anynpu import _native
from anynpu._arguments import takes, tensors_of
from anynpu._repeat import Plan, PlannedKernel
from anynpu.ops.compressed_matmul.spec import Arguments, output_shape

_call = _native.Call("compressed_matmul", tensors=7, scalars="2i")


@takes(Arguments)
def _plan(a: Arguments) -> Plan:
    scalars = (a.scale_19_bits, 1)  # 1: y is dropped on an error
    return _call.plan(tensors_of(a), [(output_shape(a), a.output_dtype)], scalars)


compressed_matmul = PlannedKernel(_plan)
