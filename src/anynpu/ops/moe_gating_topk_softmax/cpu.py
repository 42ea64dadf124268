# SPDX-License-Identifier: Apache-2.0
"""CPU kernel of moe_gating_topk_softmax."""

from __future__ import annotations

import torch

from anynpu import _native
from anynpu._repeat import Plan, PlannedKernel
from anynpu.ops.moe_gating_topk_softmax.spec import output_shapes

_call = _native.Call("moe_gating_topk_softmax", tensors=6, scalars="q")


def _plan(
    x: torch.Tensor, finished: torch.Tensor | None = None, k: int = 1, renorm: int = 0, output_softmax: bool = False
) -> Plan:
    shape, softmax_shape = output_shapes(x, finished, k, renorm, output_softmax)
    outputs = [(shape, x.dtype), (shape, torch.int32), (shape, torch.int32)]
    if len(softmax_shape) > 1:
        return _call.plan_of_contiguous((x, finished), [*outputs, (softmax_shape, torch.float32)], (renorm,))
    run = _call.plan_of_contiguous((x, finished), [*outputs, None], (renorm,))
    return lambda *present: (*run(*present), _native.allocate((0,), (1,), torch.float32))


moe_gating_topk_softmax = PlannedKernel(_plan)
