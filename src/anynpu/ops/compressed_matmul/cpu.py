# SPDX-License-Identifier: Apache-2.0
"""CPU kernel of compressed_matmul."""

from __future__ import annotations

import torch

from anynpu import _native
from anynpu._repeat import Plan, PlannedKernel
from anynpu.ops.compressed_matmul.spec import output_shape

_call = _native.Call("compressed_matmul", tensors=7, scalars="2i")


def _plan(
    x: torch.Tensor,
    stream: torch.Tensor,
    index: torch.Tensor,
    bias: torch.Tensor | None,
    scale: torch.Tensor,
    n: int | None = None,
    scale_19_bits: bool = False,
    pertoken_scale: torch.Tensor | None = None,
    output_dtype: torch.dtype = torch.float16,
) -> Plan:
    shape = output_shape(x, stream, index, bias, scale, n, pertoken_scale, output_dtype)
    scalars = (scale_19_bits, 1)  # 1: y is dropped on an error
    return _call.plan([x, stream, index, bias, scale, pertoken_scale], [(shape, output_dtype)], scalars)


compressed_matmul = PlannedKernel(_plan)
