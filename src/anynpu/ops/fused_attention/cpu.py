# SPDX-License-Identifier: Apache-2.0
"""CPU kernel of fused_attention."""

from __future__ import annotations

import torch

from anynpu import _native
from anynpu._repeat import Plan, PlannedKernel
from anynpu.ops.fused_attention.spec import ALL, check, head_size, out_dtype

_call = _native.Call("fused_attention", tensors=20, scalars="qqfiii")


def _plan(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    q_rope: torch.Tensor | None = None,
    k_rope: torch.Tensor | None = None,
    k_scale: torch.Tensor | None = None,
    k_offset: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    v_offset: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    sink: torch.Tensor | None = None,
    q_lengths: torch.Tensor | None = None,
    kv_lengths: torch.Tensor | None = None,
    softmax_scale: float | None = None,
    before: int = ALL,
    after: int = ALL,
    from_end: bool = False,
    packed: bool = False,
    with_lse: bool = False,
    out_scale: torch.Tensor | None = None,
    out_offset: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    p_scale: torch.Tensor | None = None,
) -> Plan:
    tensors = (
        q, k, v, q_rope, k_rope, k_scale, k_offset, v_scale, v_offset, block_table, mask, sink, q_lengths, kv_lengths,
    )  # fmt: skip
    further = {"out_scale": out_scale, "out_offset": out_offset, "bias": bias, "p_scale": p_scale}
    check(*tensors, packed=packed, **further)
    scale = q.shape[3] ** -0.5 if softmax_scale is None else softmax_scale
    shape = (*q.shape[:3], head_size(v))
    outputs = [(shape, out_dtype(q, out_scale)), (q.shape[:3], torch.float32) if with_lse else None]
    run = _call.plan((*tensors, *further.values()), outputs, (before, after, scale, from_end, packed, 0))
    if with_lse:
        return run
    return lambda *present: (run(*present), _native.allocate((0,), (1,), torch.float32))


fused_attention = PlannedKernel(_plan)
