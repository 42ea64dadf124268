# SPDX-License-Identifier: Apache-2.0
"""Argument rules, output shape and sample calls of trans_quant_param."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from anynpu._check import require, require_dtype
from anynpu._register import Sample

OP = "trans_quant_param"
SCHEMA = "(Tensor scale, Tensor? offset=None, int round_mode=0) -> Tensor"


def _check_input(name: str, tensor: torch.Tensor) -> None:
    require_dtype(OP, name, tensor, (torch.float32,))
    shape = tuple(tensor.shape)
    row = tensor.dim() == 1 or (tensor.dim() == 2 and tensor.shape[0] == 1)
    require(OP, row, f"{name} must be ND of shape (n,) or (1, n), got {shape}")
    require(OP, tensor.numel() > 0, f"{name} must not be empty, got shape {shape}")


def param_shape(scale: torch.Tensor, offset: torch.Tensor | None, round_mode: int) -> list[int]:
    """Checks the arguments; returns the output's shape."""
    _check_input("scale", scale)
    size = scale.shape[-1]
    if offset is not None:
        _check_input("offset", offset)
        require(
            OP,
            offset.dim() == scale.dim() and (offset.shape[-1] == 1 or size == 1 or offset.shape[-1] == size),
            "offset must have the axes of scale and its size or 1, or scale's size is 1; "
            f"scale is {tuple(scale.shape)}, got {tuple(offset.shape)}",
        )
        size = offset.shape[-1] if size == 1 else size
    require(OP, round_mode in (0, 1), f"round_mode must be 0 or 1, got {round_mode}")
    return [*scale.shape[:-1], size]


def fake(scale: torch.Tensor, offset: torch.Tensor | None = None, round_mode: int = 0) -> torch.Tensor:
    """Fake kernel."""
    return scale.new_empty(param_shape(scale, offset, round_mode), dtype=torch.int64)


def samples() -> Iterator[Sample]:
    """Valid calls."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.rand(77, generator=generator)
    offset = 300 * torch.randn(77, generator=generator)
    yield Sample("scale only", (scale,))
    yield Sample("offset", (scale, offset))
    yield Sample("rounded", (scale, offset, 1))
    yield Sample("one scale", (scale[:1], offset))
    yield Sample("one offset", (scale, offset[:1]))
    yield Sample("rows", (scale[None], offset[None]))
    yield Sample("strided", (scale[::2], offset[::2]))
    yield Sample("threads", (scale.repeat(500),))
