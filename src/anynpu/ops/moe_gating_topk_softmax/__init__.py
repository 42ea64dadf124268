# SPDX-License-Identifier: Apache-2.0
"""Which experts a token goes to: the largest probabilities of a softmax."""

from __future__ import annotations

import torch

from anynpu._register import Operator, register
from anynpu.ops.moe_gating_topk_softmax import cpu, reference, spec

_op = register(Operator.of(spec, cpu, reference, cuda=f"{__name__}.composite"))


def moe_gating_topk_softmax(
    x: torch.Tensor,
    finished: torch.Tensor | None = None,
    k: int = 1,
    *,
    renorm: int = 0,
    output_softmax: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The k largest of ``softmax(x)`` in each row, the largest first, ties to the lower index.

    Args:
        x: logits of the router, float16, bfloat16 or float32 ``[N, E]`` or ``[B, S, E]``; computed in float32. With
            float16 the probabilities are rounded before they are compared.
        finished: bool, x's shape without E: True gives expert E (none) in all k places; y stays.
        k: in [0, E].
        renorm: 0: y are the probabilities. 1: the k largest logits, then their softmax.
        output_softmax: also returns the softmax of all experts; only with renorm 0.

    Returns:
        y in x's dtype, the experts int32, ``row_idx`` int32 (``j * N + n`` for choice j of row n), all
        ``[..., k]``; the softmax float32 ``[..., E]``, or an empty tensor.

    Raises:
        TypeError: a dtype other than these.
        ValueError: shapes, k or renorm.

    Source: torch_npu.npu_moe_gating_top_k_softmax and npu_moe_gating_top_k_softmax_v2.

    >>> import torch, anynpu
    >>> y, experts, _, _ = anynpu.moe_gating_topk_softmax(torch.tensor([[0.0, 2.0, 2.0]]), k=2, renorm=1)
    >>> y.tolist(), experts.tolist()
    ([[0.5, 0.5]], [[1, 2]])
    """
    return _op(x, finished, k, renorm, output_softmax)
