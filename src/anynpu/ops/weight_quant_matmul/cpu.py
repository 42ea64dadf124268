# SPDX-License-Identifier: Apache-2.0
"""CPU kernels of weight_quant_matmul and weight_quant_prepack."""

from __future__ import annotations

import torch

from anynpu import _native
from anynpu._arguments import takes, tensors_of
from anynpu._repeat import Plan, PlannedKernel
from anynpu.ops.weight_quant_matmul.spec import Arguments, matmul_result, prepacked_size

_matmul = _native.Call("weight_quant_matmul", tensors=8, scalars="q2i")
_prepack = _native.Call("weight_quant_prepack", tensors=2)


@takes(Arguments)
def _plan(a: Arguments) -> Plan:
    return _matmul.plan(tensors_of(a), [matmul_result(a)], (a.group_size, a.inner_precise, 0))


def _plan_prepack(weight: torch.Tensor) -> Plan:
    return _prepack.plan([weight], [([prepacked_size(weight)], torch.uint8)])


weight_quant_matmul = PlannedKernel(_plan)
weight_quant_prepack = PlannedKernel(_plan_prepack)
