# SPDX-License-Identifier: Apache-2.0
"""CPU kernel of dequant_swiglu_quant."""

from __future__ import annotations

import torch

from anynpu import _native
from anynpu._arguments import takes, tensors_of
from anynpu._repeat import Plan, PlannedKernel
from anynpu.ops.dequant_swiglu_quant.spec import Arguments, output_shapes

_call = _native.Call("dequant_swiglu_quant", tensors=9, scalars="3i3f")


@takes(Arguments)
def _plan(a: Arguments) -> Plan:
    shape, scale_shape = output_shapes(a)
    scalars = (a.activate_left, a.quant_mode, a.swiglu_mode, a.clamp_limit, a.glu_alpha, a.glu_bias)
    return _call.plan_of_contiguous(tensors_of(a), [(shape, torch.int8), (scale_shape, torch.float32)], scalars)


dequant_swiglu_quant = PlannedKernel(_plan)
