# SPDX-License-Identifier: Apache-2.0
"""CPU kernel of kv_cache_attention."""

from __future__ import annotations

import torch

from anynpu import _native
from anynpu._repeat import Plan, PlannedKernel
from anynpu.ops.kv_cache_attention.spec import check

_call = _native.Call("kv_cache_attention", tensors=11, scalars="fi")


def _plan(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    lengths: torch.Tensor,
    scale_k: torch.Tensor,
    scale_v: torch.Tensor,
    offset_k: torch.Tensor | None = None,
    offset_v: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    starts: torch.Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = True,
) -> Plan:
    tensors = (q, k_cache, v_cache, lengths, scale_k, scale_v, offset_k, offset_v, block_table, starts)
    check(*tensors)
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    return _call.plan(tensors, [(q.shape, q.dtype)], (scale, causal))


kv_cache_attention = PlannedKernel(_plan)
