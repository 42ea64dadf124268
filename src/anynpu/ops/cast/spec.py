# SPDX-License-Identifier: Apache-2.0
"""Argument rules and sample calls of cast."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from anynpu._check import require, require_allowed, require_dtype
from anynpu._register import Sample

OP = "cast"
SCHEMA = "(Tensor x, ScalarType dtype) -> Tensor"
MAX_DIMS = 8

DTYPES = (
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.bool,
)


def check(x: torch.Tensor, dtype: torch.dtype) -> None:
    """Checks the arguments."""
    require_dtype(OP, "x", x, DTYPES)
    require_allowed(OP, "dtype", dtype, DTYPES)
    require(OP, x.dim() <= MAX_DIMS, f"x must have at most {MAX_DIMS} axes, got {x.dim()}")


def fake(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Fake kernel."""
    check(x, dtype)
    return x.new_empty(x.shape, dtype=dtype)


def samples() -> Iterator[Sample]:
    """Valid calls."""
    x = 300 * torch.randn(37, 53, generator=torch.Generator().manual_seed(0))
    yield Sample("to half", (x, torch.float16))
    yield Sample("to bfloat16", (x, torch.bfloat16))
    yield Sample("from half", (x.half(), torch.float32))
    yield Sample("saturates", (x, torch.int8))
    yield Sample("wraps", (x.long(), torch.uint8))
    yield Sample("to bool", (x.int(), torch.bool))
    yield Sample("transposed", (x.t(), torch.float16))
    yield Sample("expanded", (x[:, :1].expand(37, 9), torch.int32))
    yield Sample("no axis", (x[0, 0], torch.float64))
    yield Sample("empty", (x[:0], torch.int64))
    yield Sample("threads", (x.repeat(40, 3), torch.float16))
