# SPDX-License-Identifier: Apache-2.0
"""Argument rules, output shapes and sample calls of moe_gating_topk_softmax."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from anynpu._check import dtype_name, require, require_dtype, require_tensor
from anynpu._register import Sample

OP = "moe_gating_topk_softmax"
SCHEMA = (
    "(Tensor x, Tensor? finished=None, int k=1, int renorm=0, bool output_softmax=False) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)
FLOATS = (torch.float16, torch.float32, torch.bfloat16)


def output_shapes(
    x: torch.Tensor, finished: torch.Tensor | None = None, k: int = 1, renorm: int = 0, output_softmax: bool = False
) -> tuple[list[int], list[int]]:
    """Checks the arguments; returns the shape of y and the indices, and that of softmax."""
    require_tensor(OP, "x", x)
    require(OP, x.dim() in (2, 3), f"The x should be 2D or 3D, got {x.dim()}D")
    if x.dtype not in FLOATS:
        got = dtype_name(x.dtype)
        raise TypeError(f"{OP}: float16, float32 or bfloat16 tensor expected but got a tensor with dtype: {got}")
    leading, experts = list(x.shape[:-1]), x.shape[-1]
    require(OP, k >= 0 and k <= experts, f"The k should be in [0, E] = [0, {experts}], got {k}")
    require(OP, renorm in (0, 1), f"renorm must be 0 or 1, but got: {renorm}")
    if finished is not None:
        require_dtype(OP, "finished", finished, (torch.bool,))
        axes = (x.dim(), finished.dim())
        require(OP, axes[0] == axes[1] + 1, f"x dims shoud be largs finished dims than 1., got {axes[0]} and {axes[1]}")
        same = all(a == b for a, b in zip(leading, finished.shape, strict=True))
        require(OP, same, f"Input rows shoud be same., got {tuple(leading)} and {tuple(finished.shape)}")
    return [*leading, k], [*leading, experts] if output_softmax and renorm == 0 else [0]


def column_major(shape: list[int], device: torch.device) -> torch.Tensor:
    """int32 of ``shape`` [..., K]: j * N + n for choice j of row n."""
    rows, k = math.prod(shape[:-1]), shape[-1]
    return torch.arange(rows * k, dtype=torch.int32, device=device).reshape(k, rows).t().reshape(shape).contiguous()


def fake(
    x: torch.Tensor, finished: torch.Tensor | None = None, k: int = 1, renorm: int = 0, output_softmax: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Fake kernel."""
    shape, softmax_shape = output_shapes(x, finished, k, renorm, output_softmax)
    return (
        x.new_empty(shape),
        x.new_empty(shape, dtype=torch.int32),
        x.new_empty(shape, dtype=torch.int32),
        x.new_empty(softmax_shape, dtype=torch.float32),
    )


def samples() -> Iterator[Sample]:
    """Valid calls, on logits far enough apart that every rounding orders them alike."""
    generator = torch.Generator().manual_seed(0)
    x = torch.stack([torch.randperm(24, generator=generator) for _ in range(10)]) / 4.0
    yield Sample("float32", (x, None, 4))
    yield Sample("float16 with finished rows", (x.half(), x[:, 0] > 3, 3, 0, True))
    yield Sample("renormalised, 3-D", (x.bfloat16().reshape(2, 5, 24), None, 6, 1))
