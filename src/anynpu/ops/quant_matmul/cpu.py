# SPDX-License-Identifier: Apache-2.0
"""CPU kernel of quant_matmul."""

from __future__ import annotations

import torch

from anynpu import _native
from anynpu._repeat import Plan, PlannedKernel
from anynpu.ops.quant_matmul.spec import output_shape

_call = _native.Call("quant_matmul", tensors=7, scalars="q")


def _plan(
    x1: torch.Tensor,
    x2: torch.Tensor,
    scale: torch.Tensor,
    offset: torch.Tensor | None = None,
    pertoken_scale: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    output_dtype: torch.dtype | None = None,
    group_size: int = 0,
    n: int | None = None,
) -> Plan:
    tensors = [x1, x2, scale, offset, pertoken_scale, bias]
    shape = output_shape(*tensors, output_dtype, group_size, n)
    return _call.plan(tensors, [(shape, output_dtype or torch.int8)], (group_size,))


quant_matmul = PlannedKernel(_plan)
