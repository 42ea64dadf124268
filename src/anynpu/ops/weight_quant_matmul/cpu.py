# SPDX-License-Identifier: Apache-2.0
"""CPU kernels of weight_quant_matmul and weight_quant_prepack."""

from __future__ import annotations

import torch

from anynpu import _native
from anynpu._repeat import Plan, PlannedKernel
from anynpu.ops.weight_quant_matmul.spec import matmul_result, prepacked_size

_matmul = _native.Call("weight_quant_matmul", tensors=8, scalars="q2i")
_prepack = _native.Call("weight_quant_prepack", tensors=2)


def _plan(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    offset: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    quant_scale: torch.Tensor | None = None,
    quant_offset: torch.Tensor | None = None,
    group_size: int = 0,
    inner_precise: int = 0,
    n: int | None = None,
) -> Plan:
    tensors = (x, weight, scale, offset, bias, quant_scale, quant_offset)
    result = matmul_result(*tensors, group_size, inner_precise, n)
    return _matmul.plan(tensors, [result], (group_size, inner_precise, 0))


def _plan_prepack(weight: torch.Tensor) -> Plan:
    return _prepack.plan([weight], [([prepacked_size(weight)], torch.uint8)])


weight_quant_matmul = PlannedKernel(_plan)
weight_quant_prepack = PlannedKernel(_plan_prepack)
