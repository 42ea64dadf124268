# SPDX-License-Identifier: Apache-2.0
"""moe_gating_topk_softmax of CUDA tensors out of torch operators."""

from __future__ import annotations

import torch

from anynpu.ops.moe_gating_topk_softmax.spec import column_major, output_shapes


def moe_gating_topk_softmax(
    x: torch.Tensor, finished: torch.Tensor | None = None, k: int = 1, renorm: int = 0, output_softmax: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """See ``anynpu.moe_gating_topk_softmax``."""
    shape, softmax_shape = output_shapes(x, finished, k, renorm, output_softmax)
    scores = x.float() if renorm else x.float().softmax(-1)
    # float16 probabilities are rounded before they are ordered, which makes ties.
    rounded = scores.half() if x.dtype == torch.float16 and not renorm else scores
    values, order = rounded.sort(dim=-1, descending=True, stable=True)
    y, index = values[..., :k], order[..., :k].int()
    if renorm:
        y = y.softmax(-1)
    if finished is not None:
        index = index.masked_fill(finished.unsqueeze(-1), x.shape[-1])
    whole = scores if len(softmax_shape) > 1 else scores.new_empty(0)
    return y.to(x.dtype).contiguous(), index.contiguous(), column_major(shape, x.device), whole
