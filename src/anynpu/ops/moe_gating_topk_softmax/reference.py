# SPDX-License-Identifier: Apache-2.0
"""Oracle of moe_gating_topk_softmax: float64, one rounding, and a choice by sorting the experts of each row."""

from __future__ import annotations

import math

import torch

from anynpu.ops.moe_gating_topk_softmax.spec import output_shapes

_U = 2.0**-24  # half a unit in the last place of float32


def chosen(scores: torch.Tensor, k: int) -> torch.Tensor:
    """The k largest of each row, NaN before all others, then the largest; among equals the one with the lower index."""

    def place(score: float) -> tuple[bool, float]:
        return (not math.isnan(score), 0.0 if math.isnan(score) else -score)

    rows = scores.flatten(0, -2).tolist()
    picks = [sorted(range(len(row)), key=lambda expert: place(row[expert]))[:k] for row in rows]
    return torch.tensor(picks, dtype=torch.int64).reshape(*scores.shape[:-1], k)


def moe_gating_topk_softmax(
    x: torch.Tensor, finished: torch.Tensor | None = None, k: int = 1, renorm: int = 0, output_softmax: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The k most probable experts of each row and their probabilities."""
    shape, softmax_shape = output_shapes(x, finished, k, renorm, output_softmax)
    softmax = x.double().softmax(-1)
    # As the document compares them: where float32 (float16) cannot tell probabilities apart, they are equal.
    scores = x if renorm else softmax.to(torch.float16 if x.dtype == torch.float16 else torch.float32)
    index = chosen(scores.double(), k)
    y = x.double().gather(-1, index).softmax(-1) if renorm else softmax.gather(-1, index)
    if finished is not None:
        index = torch.where(finished.unsqueeze(-1), x.shape[-1], index)
    rows = y.numel() // k if k else 0
    row_idx = torch.tensor([[j * rows + n for j in range(k)] for n in range(rows)], dtype=torch.int32).reshape(shape)
    whole = softmax.float() if len(softmax_shape) > 1 else torch.empty(0)
    return y.to(x.dtype), index.int(), row_idx, whole


def error_bound(
    x: torch.Tensor, finished: torch.Tensor | None = None, k: int = 1, renorm: int = 0, output_softmax: bool = False
) -> tuple[torch.Tensor, ...]:
    """How far probabilities may be: of the E + 1 additions and roundings each at most U, the exponential's argument
    has one more of its size, and one spacing of the result's dtype at the end. The indices are exact."""
    y, index, row_idx, whole = moe_gating_topk_softmax(x, finished, k, renorm, output_softmax)
    spread = x.double().amax(-1, keepdim=True) - x.double().amin(-1, keepdim=True) if x.numel() else y.double()[..., :1]
    relative = (x.shape[-1] + 8 + spread) * _U
    limits = torch.finfo(x.dtype)
    bounds = y.double() * (relative + limits.eps) + limits.smallest_normal * limits.eps
    whole_bound = whole.double() * (relative + _U) if whole.numel() else whole.double()
    return bounds, torch.zeros(index.shape), torch.zeros(row_idx.shape), whole_bound
