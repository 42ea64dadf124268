# SPDX-License-Identifier: Apache-2.0
"""The published operators of decoding: partial attention put together, and logits cut to the likely ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from anynpu._check import require, require_dtype
from anynpu.compat.published import published

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@published(
    "npu_attention_update(Tensor[] lse, Tensor[] local_out, int update_type) -> (Tensor, Tensor)",
    "aclnnAttentionUpdate",
)
def npu_attention_update(
    lse: Sequence[torch.Tensor], local_out: Sequence[torch.Tensor], update_type: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention to all keys from that to parts of them: ``sum(exp(lse[i] - all) * local_out[i])``.

    ``all`` is the log-sum-exp of ``lse``, float32 (T,); ``local_out`` (T, D) of one float dtype. The second result is
    ``all`` for ``update_type`` 1, empty for 0. A row that saw no key, whose lse are all -inf, gives 0.
    """
    op = "npu_attention_update"
    require(op, update_type in (0, 1), f"update_type must be 0 or 1, got {update_type}")
    counts = len(lse), len(local_out)
    require(op, counts[0] == counts[1] > 0, f"lse and local_out must be as many, at least 1, got {counts}")
    shape, dtype = tuple(local_out[0].shape), local_out[0].dtype
    require(op, len(shape) == 2, f"local_out must have shape (T, D), got {shape}")
    for sums, part in zip(lse, local_out, strict=True):
        require_dtype(op, "lse", sums, (torch.float32,))
        require_dtype(op, "local_out", part, (dtype,) if dtype in _FLOATS else _FLOATS)
        got = tuple(sums.shape), tuple(part.shape)
        expected = shape[:1], shape
        require(op, got == expected, f"lse and local_out must have shapes {expected[0]} and {shape}, got {got}")
    sums = torch.stack(tuple(lse))
    total = sums.logsumexp(0)
    weights = (sums - total).exp().masked_fill(total == -torch.inf, 0)
    out = (weights.unsqueeze(-1) * torch.stack(tuple(local_out)).float()).sum(0).to(dtype)
    return out, total if update_type == 1 else total.new_empty(0)


@published("npu_top_k_top_p(Tensor logits, Tensor? p, Tensor? k) -> Tensor", "aclnnApplyTopKTopP")
def npu_top_k_top_p(logits: torch.Tensor, p: torch.Tensor | None, k: torch.Tensor | None) -> torch.Tensor:
    """``logits`` (B, V), -inf but for the ``k`` greatest, and of these but for the likeliest that make up ``p``.

    ``p`` float (B,) in [0, 1], ``k`` int32 (B,) in [1, V], at least one. Values that equal the k-th are kept,
    and so is the greatest.
    """
    op = "npu_top_k_top_p"
    require_dtype(op, "logits", logits, _FLOATS)
    shape = tuple(logits.shape)
    require(op, len(shape) == 2 and shape[1] > 0, f"logits must have shape (B, V), got {shape}")
    require(op, not (p is None and k is None), "p or k must be given, got neither")
    for name, bound, dtypes in (("p", p, _FLOATS), ("k", k, (torch.int32, torch.int64))):
        if bound is not None:
            require_dtype(op, name, bound, dtypes)
            got = tuple(bound.shape)
            require(op, got == shape[:1], f"{name} must have shape {shape[:1]}, got {got}")
    values, order = logits.float().sort(dim=-1, stable=True)
    if k is not None:
        torch._assert_async(((k >= 1) & (k <= shape[1])).all(), f"{op}: k must be in [1, {shape[1]}]")
        least = values.gather(1, (shape[1] - k.long())[:, None])
        values = values.masked_fill(values < least, -torch.inf)
    if p is not None:
        torch._assert_async(((p >= 0) & (p <= 1)).all(), f"{op}: p must be in [0, 1]")
        unlikely = values.softmax(-1).cumsum(-1) <= 1 - p.float()[:, None]
        unlikely = unlikely & (torch.arange(shape[1], device=values.device) < shape[1] - 1)
        values = values.masked_fill(unlikely, -torch.inf)
    return torch.empty_like(values).scatter(1, order, values).to(logits.dtype)
