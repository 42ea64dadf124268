# SPDX-License-Identifier: Apache-2.0
"""Argument rules, output shapes and sample calls of dynamic_quant."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from anynpu._check import dtype_name, require, require_dtype
from anynpu._register import Sample

OP = "dynamic_quant"
SCHEMA = (
    "(Tensor x, Tensor? smooth_scales=None, Tensor? group_index=None, ScalarType? dtype=None, "
    'str quant_mode="pertoken") -> (Tensor, Tensor)'
)
MODES = ("pertoken", "perchannel", "pertensor")


def _require_smooth(x, smooth, group_index, mode) -> None:
    if group_index is not None:
        require(OP, smooth is not None, "group_index needs smooth_scales")
        require_dtype(OP, "group_index", group_index, (torch.int32,))
        shape = tuple(group_index.shape)
        fits = len(shape) == 1 and shape[0] >= 1 and mode != "perchannel"
        require(OP, fits, f"group_index must have shape (G,), not per channel, got {shape}")
    if smooth is None:
        return
    if smooth.dtype != x.dtype:
        raise TypeError(f"{OP}: smooth_scales must be {dtype_name(x.dtype)} as x is, got {dtype_name(smooth.dtype)}")
    length = x.shape[-2] if mode == "perchannel" else x.shape[-1]
    expected = (length,) if group_index is None else (group_index.shape[0], length)
    fits = smooth.dim() == len(expected) and all(a == b for a, b in zip(smooth.shape, expected, strict=True))
    require(OP, fits, f"smooth_scales must have shape {expected}, got {tuple(smooth.shape)}")


def output_shapes(x, smooth_scales, group_index, dtype, quant_mode) -> tuple[list[int], list[int]]:
    """Checks everything that does not need data; returns the shapes of y and scale."""
    require_dtype(OP, "x", x, (torch.float16, torch.bfloat16, torch.float32))
    if dtype not in (torch.int8, torch.int32):
        raise TypeError(f"{OP}: dtype must be int8 or int32 (eight int4), got {dtype_name(dtype)}")
    require(OP, quant_mode in MODES, f"quant_mode must be {', '.join(MODES)}, got {quant_mode!r}")
    require(OP, x.dim() >= 2, f"Input shape dim should be greater than 1, got {x.dim()}")
    _require_smooth(x, smooth_scales, group_index, quant_mode)
    shape = list(x.shape)
    scale = {"pertoken": shape[:-1], "perchannel": [*shape[:-2], shape[-1]], "pertensor": [1]}[quant_mode]
    if dtype == torch.int32:
        last = shape[-1]
        require(OP, last % 8 == 0, f"Input shape last dim must be divded by 8 when int4 quantization, got {last}")
        shape[-1] = last // 8
    return shape, scale


def fake(x, smooth_scales=None, group_index=None, dtype=None, quant_mode="pertoken"):
    """Fake kernel."""
    dtype = dtype or torch.int8
    shape, scale = output_shapes(x, smooth_scales, group_index, dtype, quant_mode)
    return x.new_empty(shape, dtype=dtype), x.new_empty(scale, dtype=torch.float32)


def _normal(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def samples() -> Iterator[Sample]:
    """Valid calls."""
    yield Sample("tokens", (_normal(17, 130),))
    yield Sample("smoothed bfloat16", (_normal(2, 5, 64, dtype=torch.bfloat16), _normal(64, dtype=torch.bfloat16)))
    yield Sample("int4 by channel", (_normal(9, 72), None, None, torch.int32, "perchannel"))
    yield Sample("tensor", (_normal(3, 40, dtype=torch.float32), None, None, torch.int8, "pertensor"))
