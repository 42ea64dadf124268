# SPDX-License-Identifier: Apache-2.0
"""Argument rules, output shape and sample calls of anti_quant."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from anynpu._check import require, require_allowed, require_dtype
from anynpu._register import Sample
from anynpu.ops.int4_pack.reference import int4_pack

OP = "anti_quant"
SCHEMA = "(Tensor x, Tensor scale, Tensor? offset=None, ScalarType? dtype=None) -> Tensor"
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
RESULTS = (torch.float16, torch.bfloat16)
INT4_PER_WORD = 8
MAX_DIMS = 8


def _check_parameter(name: str, tensor: torch.Tensor, n: int) -> None:
    require_dtype(OP, name, tensor, FLOATS)
    fits = tensor.dim() == 1 and (tensor.shape[0] == 1 or tensor.shape[0] == n)
    require(OP, fits, f"{name} must have shape (1,) or (N,) = ({n},), got {tuple(tensor.shape)}")


def result_shape(x: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor | None, dtype: torch.dtype) -> list[int]:
    """Checks the arguments; returns the output's shape."""
    require_dtype(OP, "x", x, (torch.int8, torch.int32))
    require(OP, 1 <= x.dim() <= MAX_DIMS, f"x must have 1 to {MAX_DIMS} axes, got {x.dim()}")
    require(OP, x.numel() > 0, f"x must not be empty, got shape {tuple(x.shape)}")
    n = x.shape[-1] * (INT4_PER_WORD if x.dtype == torch.int32 else 1)
    _check_parameter("scale", scale, n)
    if offset is not None:
        _check_parameter("offset", offset, n)
        require_dtype(OP, "offset", offset, (scale.dtype,))
    require_allowed(OP, "dtype", dtype, RESULTS)
    return [*x.shape[:-1], n]


def fake(
    x: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor | None = None, dtype: torch.dtype = torch.float16
) -> torch.Tensor:
    """Fake kernel."""
    return x.new_empty(result_shape(x, scale, offset, dtype), dtype=dtype)


def samples() -> Iterator[Sample]:
    """Valid calls."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.rand(24, generator=generator) + 0.1
    offset = 9 * torch.randn(24, generator=generator)
    codes = torch.randint(-128, 128, (5, 24), generator=generator, dtype=torch.int8)
    words = int4_pack(torch.randint(-8, 8, (7, 24), generator=generator, dtype=torch.int32))
    yield Sample("int8", (codes, scale, offset))
    yield Sample("int8 per tensor", (codes, scale[:1]))
    yield Sample("bfloat16", (codes, scale.bfloat16(), offset.bfloat16(), torch.bfloat16))
    yield Sample("int4", (words, scale, offset))
    yield Sample("int4, one axis, float16 scale", (words[0], scale.half(), offset[:1].half()))
    yield Sample("transposed", (codes.t(), scale[:5], offset[:1]))
