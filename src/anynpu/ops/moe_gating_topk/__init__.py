# SPDX-License-Identifier: Apache-2.0
"""Which experts a token goes to, with the bias, groups and sigmoid of DeepSeek's models."""

from __future__ import annotations

import torch

from anynpu._register import Operator, register
from anynpu.ops.moe_gating_topk import composite, cpu, reference, spec

_op = register(Operator.of(spec, cpu, reference, cuda=composite.__name__))


def moe_gating_topk(
    x: torch.Tensor,
    k: int,
    *,
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
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The k best experts of each row and their weights, computed in float32; ties go to the lower index.

    1. ``s = softmax(x)`` (``norm_type`` 0) or ``sigmoid(x)`` (1); ``c = s + bias`` decides, the weights are s.
    2. The experts form ``group_count`` groups; a group is worth its largest c (``group_select_mode`` 0) or the sum of
       its two largest (1); the experts of the ``k_group`` best groups are left.
    3. The k largest c. ``y = s`` of them; with sigmoid ``y / (sum(y) + eps)``; times ``routed_scaling_factor``.

    Args:
        x: logits of the router, float16, bfloat16 or float32 ``[N, E]``.
        k: in [1, E / group_count * k_group].
        bias: ``[E]`` of x's dtype.
        input_ids, tid2eid: int32 or int64 ``[N]`` and ``[V, k]``: experts by token id, ``tid2eid[input_ids]``, in
            place of steps 2 and 3's choice.
        renorm: only 0 is documented.

    Returns:
        y in x's dtype and the experts int32, ``[N, k]``; s float32 ``[N, E]``.

    Raises:
        TypeError: a dtype other than these.
        ValueError: shapes, groups, k, or ids outside their tables.
        NotImplementedError: another renorm or norm_type.

    Source: torch_npu.npu_moe_gating_top_k.

    >>> import torch, anynpu
    >>> y, experts, _ = anynpu.moe_gating_topk(torch.tensor([[0.0, 0.0, 1.0, -9.0]]), 2, k_group=1, group_count=2,
    ...                                        group_select_mode=1, norm_type=1)
    >>> y.tolist(), experts.tolist()
    ([[0.5, 0.5]], [[0, 1]])
    """
    return _op(
        x, k, bias, input_ids, tid2eid, k_group, group_count, group_select_mode, renorm, norm_type,
        routed_scaling_factor, eps,
    )  # fmt: skip
