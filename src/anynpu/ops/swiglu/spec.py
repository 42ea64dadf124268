# SPDX-License-Identifier: Apache-2.0
"""Argument rules, output shape and sample calls of swiglu."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from anynpu._check import require, require_dtype
from anynpu._register import Sample

OP = "swiglu"
SCHEMA = "(Tensor x, int dim=-1) -> Tensor"
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
MAX_DIMS = 8


def output_shape(x: torch.Tensor, dim: int = -1) -> list[int]:
    """Checks the arguments; returns the output's shape."""
    require_dtype(OP, "x", x, FLOATS)
    axes = x.dim()
    require(OP, 1 <= axes <= MAX_DIMS, f"x must have 1 to {MAX_DIMS} axes, got {axes}")
    require(OP, -axes <= dim < axes, f"dim out of range, expected [{-axes}, {axes - 1}], got {dim}")
    shape = list(x.shape)
    require(OP, shape[dim] % 2 == 0, f"the size of x along dim must be even, got {shape[dim]}")
    shape[dim] //= 2
    return shape


def fake(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """Fake kernel."""
    return x.new_empty(output_shape(x, dim))


def samples() -> Iterator[Sample]:
    """Valid calls."""
    x = 4 * torch.randn(6, 8, 10, generator=torch.Generator().manual_seed(0))
    yield Sample("float32", (x,))
    yield Sample("float16, middle axis", (x.half(), 1))
    yield Sample("bfloat16, first axis", (x.bfloat16(), -3))
