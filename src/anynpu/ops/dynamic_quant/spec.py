# SPDX-License-Identifier: Apache-2.0
"""Argument rules, output shapes and sample calls of dynamic_quant."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from anynpu._arguments import takes
from anynpu._check import dtype_name, require, require_dtype
from anynpu._register import Sample

OP = "dynamic_quant"
SCHEMA = (
    "(Tensor x, Tensor? smooth_scales=None, Tensor? group_index=None, ScalarType? dtype=None, "
    'str quant_mode="pertoken") -> (Tensor, Tensor)'
)
MODES = ("pertoken", "perchannel", "pertensor")


class Arguments(NamedTuple):
    """Of one call, in the order of ``SCHEMA``."""

    x: torch.Tensor
    smooth_scales: torch.Tensor | None = None
    group_index: torch.Tensor | None = None
    dtype: torch.dtype | None = None
    quant_mode: str = "pertoken"


def _require_smooth(a: Arguments) -> None:
    if a.group_index is not None:
        require(OP, a.smooth_scales is not None, "group_index needs smooth_scales")
        require_dtype(OP, "group_index", a.group_index, (torch.int32,))
        shape = tuple(a.group_index.shape)
        fits = len(shape) == 1 and shape[0] >= 1 and a.quant_mode != "perchannel"
        require(OP, fits, f"group_index must have shape (G,), not per channel, got {shape}")
    if a.smooth_scales is None:
        return
    smooth, dtype = a.smooth_scales, a.x.dtype
    if smooth.dtype != dtype:
        raise TypeError(f"{OP}: smooth_scales must be {dtype_name(dtype)} as x is, got {dtype_name(smooth.dtype)}")
    length = a.x.shape[-2] if a.quant_mode == "perchannel" else a.x.shape[-1]
    expected = (length,) if a.group_index is None else (a.group_index.shape[0], length)
    fits = smooth.dim() == len(expected) and all(x == y for x, y in zip(smooth.shape, expected, strict=True))
    require(OP, fits, f"smooth_scales must have shape {expected}, got {tuple(smooth.shape)}")


def outputs(a: Arguments) -> tuple[tuple[list[int], torch.dtype], tuple[list[int], torch.dtype]]:
    """Checks everything that does not need data; returns the shapes and dtypes of y and scale."""
    require_dtype(OP, "x", a.x, (torch.float16, torch.bfloat16, torch.float32))
    dtype = a.dtype or torch.int8
    if dtype not in (torch.int8, torch.int32):
        raise TypeError(f"{OP}: dtype must be int8 or int32 (eight int4), got {dtype_name(dtype)}")
    require(OP, a.quant_mode in MODES, f"quant_mode must be {', '.join(MODES)}, got {a.quant_mode!r}")
    require(OP, a.x.dim() >= 2, f"Input shape dim should be greater than 1, got {a.x.dim()}")
    _require_smooth(a)
    shape = list(a.x.shape)
    scale = {"pertoken": shape[:-1], "perchannel": [*shape[:-2], shape[-1]], "pertensor": [1]}[a.quant_mode]
    if dtype == torch.int32:
        last = shape[-1]
        require(OP, last % 8 == 0, f"Input shape last dim must be divded by 8 when int4 quantization, got {last}")
        shape[-1] = last // 8
    return (shape, dtype), (scale, torch.float32)


@takes(Arguments)
def fake(a: Arguments) -> tuple[torch.Tensor, torch.Tensor]:
    """Fake kernel."""
    (shape, dtype), (scale_shape, scale_dtype) = outputs(a)
    return a.x.new_empty(shape, dtype=dtype), a.x.new_empty(scale_shape, dtype=scale_dtype)


def _normal(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def samples() -> Iterator[Sample]:
    """Valid calls."""
    yield Sample("tokens", (_normal(17, 130),))
    yield Sample("smoothed bfloat16", (_normal(2, 5, 64, dtype=torch.bfloat16), _normal(64, dtype=torch.bfloat16)))
    yield Sample("int4 by channel", (_normal(9, 72), None, None, torch.int32, "perchannel"))
    yield Sample("tensor", (_normal(3, 40, dtype=torch.float32), None, None, torch.int8, "pertensor"))
