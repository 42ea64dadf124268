# SPDX-License-Identifier: Apache-2.0
"""CPU kernel of swiglu."""

from __future__ import annotations

import torch

from anynpu import _native
from anynpu._repeat import Plan, PlannedKernel
from anynpu.ops.swiglu.spec import output_shape

_call = _native.Call("swiglu", tensors=2, scalars="q")


def _plan(x: torch.Tensor, dim: int = -1) -> Plan:
    return _call.plan_of_contiguous([x], [(output_shape(x, dim), x.dtype)], (dim,))


swiglu = PlannedKernel(_plan)
