# SPDX-License-Identifier: Apache-2.0
"""CPU kernel of dequant_swiglu_quant."""

from __future__ import annotations

import torch

from anynpu import _native
from anynpu._repeat import Plan, PlannedKernel
from anynpu.ops.dequant_swiglu_quant.spec import output_shapes

_call = _native.Call("dequant_swiglu_quant", tensors=9, scalars="3i3f")


def _plan(
    x: torch.Tensor,
    weight_scale: torch.Tensor | None = None,
    activation_scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    quant_scale: torch.Tensor | None = None,
    quant_offset: torch.Tensor | None = None,
    group_index: torch.Tensor | None = None,
    activate_left: bool = False,
    quant_mode: int = 0,
    swiglu_mode: int = 0,
    clamp_limit: float = 7.0,
    glu_alpha: float = 1.702,
    glu_bias: float = 1.0,
) -> Plan:
    tensors = (x, weight_scale, activation_scale, bias, quant_scale, quant_offset, group_index)
    scalars = (activate_left, quant_mode, swiglu_mode, clamp_limit, glu_alpha, glu_bias)
    shape, scale_shape = output_shapes(*tensors, *scalars)
    return _call.plan_of_contiguous(tensors, [(shape, torch.int8), (scale_shape, torch.float32)], scalars)


dequant_swiglu_quant = PlannedKernel(_plan)
