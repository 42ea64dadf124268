# SPDX-License-Identifier: Apache-2.0
"""CPU kernel of dynamic_quant."""

from __future__ import annotations

import torch

from anynpu import _native
from anynpu._repeat import Plan, PlannedKernel
from anynpu.ops.dynamic_quant.spec import MODES, output_shapes

_call = _native.Call("dynamic_quant", tensors=5, scalars="2i")


def _plan(
    x: torch.Tensor,
    smooth_scales: torch.Tensor | None = None,
    group_index: torch.Tensor | None = None,
    dtype: torch.dtype | None = None,
    quant_mode: str = "pertoken",
) -> Plan:
    dtype = dtype or torch.int8
    shape, scale_shape = output_shapes(x, smooth_scales, group_index, dtype, quant_mode)
    outputs = [(shape, dtype), (scale_shape, torch.float32)]
    return _call.plan([x, smooth_scales, group_index], outputs, (MODES.index(quant_mode), 0))


dynamic_quant = PlannedKernel(_plan)
