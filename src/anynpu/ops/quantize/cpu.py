# SPDX-License-Identifier: Apache-2.0
"""CPU kernel of quantize."""

from __future__ import annotations

import torch

from anynpu import _native
from anynpu._repeat import Plan, PlannedKernel
from anynpu.ops.quantize.spec import output

_call = _native.Call("quantize", tensors=4, scalars="q2i")


def _plan(
    x: torch.Tensor,
    scales: torch.Tensor,
    zero_points: torch.Tensor | None,
    dtype: torch.dtype,
    axis: int = 1,
    div_mode: bool = True,
) -> Plan:
    stored = output(x, scales, zero_points, dtype, axis, div_mode)
    return _call.plan([x, scales, zero_points], [stored], (axis, div_mode, 0))


quantize = PlannedKernel(_plan)
