# SPDX-License-Identifier: Apache-2.0
"""CPU kernel of anti_quant."""

from __future__ import annotations

import torch

from anynpu import _native
from anynpu._repeat import Plan, PlannedKernel
from anynpu.ops.anti_quant.spec import result_shape

_call = _native.Call("anti_quant", tensors=4)


def _plan(
    x: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor | None = None, dtype: torch.dtype = torch.float16
) -> Plan:
    return _call.plan_of_contiguous((x, scale, offset), [(result_shape(x, scale, offset, dtype), dtype)])


anti_quant = PlannedKernel(_plan)
