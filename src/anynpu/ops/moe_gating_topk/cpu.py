# SPDX-License-Identifier: Apache-2.0
"""CPU kernel of moe_gating_topk."""

from __future__ import annotations

import torch

from anynpu import _native
from anynpu._repeat import Plan, PlannedKernel
from anynpu.ops.moe_gating_topk import composite
from anynpu.ops.moe_gating_topk.spec import check

_call = _native.Call("moe_gating_topk", tensors=5, scalars="qqiiff")


def _plan(
    x: torch.Tensor,
    k: int,
    bias: torch.Tensor | None = None,
    input_ids: torch.Tensor | None = None,
    tid2eid: torch.Tensor | None = None,
    k_group: int = 1,
    group_count: int = 1,
    group_select_mode: int = 0,
    renorm: int = 0,
    norm_type: int = 0,
    routed_scaling_factor: float = 1.0,
    eps: float = 1e-20,
) -> Plan:
    attributes = (k_group, group_count, group_select_mode, renorm, norm_type, routed_scaling_factor, eps)
    check(x, k, bias, input_ids, tid2eid, *attributes)
    if input_ids is not None:  # experts by token id: nothing is chosen
        with_bias = bias is not None
        return lambda x, *rest: composite.moe_gating_topk(x, k, *(rest if with_bias else (None, *rest)), *attributes)
    outputs = [((x.shape[0], k), x.dtype), ((x.shape[0], k), torch.int32), (x.shape, torch.float32)]
    modes = (k_group, group_count, group_select_mode, norm_type, routed_scaling_factor, eps)
    return _call.plan_of_contiguous((x, bias), outputs, modes)


moe_gating_topk = PlannedKernel(_plan)
