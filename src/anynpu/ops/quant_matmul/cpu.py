# SPDX-License-Identifier: Apache-2.0
"""CPU kernel of quant_matmul."""

from __future__ import annotations

import torch

from anynpu import _native
from anynpu._repeat import Plan, PlannedKernel
from anynpu.ops.quant_matmul.spec import output_shape

_call = _native.Call("quant_matmul", tensors=7)


def _plan(
    x1: torch.Tensor,
    x2: torch.Tensor,
    scale: torch.Tensor,
    offset: torch.Tensor | None = None,
    pertoken_scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    output_dtype: torch.dtype | None = None,
) -> Plan:
    shape = output_shape(x1, x2, scale, offset, pertoken_scale, bias, output_dtype)
    return _call.plan([x1, x2, scale, offset, pertoken_scale, bias], [(shape, output_dtype or torch.int8)])


quant_matmul = PlannedKernel(_plan)
