# SPDX-License-Identifier: Apache-2.0
"""CPU kernel of compressed_matmul."""

from __future__ import annotations

import torch

from anynpu import _native
from anynpu._repeat import Plan, PlannedKernel
from anynpu.ops.compressed_matmul.spec import output_shape

_call = _native.Call("compressed_matmul", tensors=6, scalars="2i")


def _plan(
    x: torch.Tensor,
    stream: torch.Tensor,
    index: torch.Tensor,
    bias: torch.Tensor | None,
    scale: torch.Tensor,
    n: int | None = None,
    scale_19_bits: bool = False,
) -> Plan:
    shape = output_shape(x, stream, index, bias, scale, n)
    scalars = (scale_19_bits, 1)  # 1: y is dropped on an error
    return _call.plan([x, stream, index, bias, scale], [(shape, torch.float16)], scalars)


compressed_matmul = PlannedKernel(_plan)
