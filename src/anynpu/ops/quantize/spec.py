# SPDX-License-Identifier: Apache-2.0
"""Argument rules, output shape and sample calls of quantize."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from anynpu._check import require, require_allowed, require_dtype
from anynpu._register import Sample

OP = "quantize"
SCHEMA = "(Tensor x, Tensor scales, Tensor? zero_points, ScalarType dtype, int axis=1, bool div_mode=True) -> Tensor"
MAX_DIMS = 8
INT4_PER_WORD = 8

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.int8, torch.uint8, torch.int32)
# By div_mode: what `dtype` may be, and the dtype of the tensor that comes out.
STORED = {
    True: {
        torch.int8: torch.int8,
        torch.qint8: torch.int8,
        torch.uint8: torch.uint8,
        torch.quint8: torch.uint8,
        torch.int32: torch.int32,
        torch.qint32: torch.int32,
    },
    False: {torch.int8: torch.int8, torch.qint8: torch.int8, torch.quint4x2: torch.int32},
}


def channel_axis(x: torch.Tensor, axis: int, div_mode: bool) -> int | None:
    """The axis of ``x`` that the scales run along, not negative; None when ``x`` has no such axis."""
    ndim = x.dim()
    wanted = -1 if not div_mode and axis > -2 else axis
    return wanted % ndim if -ndim <= wanted < ndim else None


def _check_channels(name: str, tensor: torch.Tensor, x: torch.Tensor, axis: int | None, wanted: int) -> None:
    if tensor.dim() == 1 and tensor.shape[0] == 1:
        return
    shape = tuple(x.shape)
    require(OP, axis is not None, f"axis must be in [{-x.dim()}, {x.dim() - 1}] (x is {shape}), got {wanted}")
    size = x.shape[axis]
    if tensor.dim() == 1:
        fits = tensor.shape[0] == size
    else:
        sizes = enumerate(tensor.shape)
        fits = tensor.dim() == x.dim() and all(got == 1 or (i == axis and got == size) for i, got in sizes)
    require(
        OP,
        fits,
        f"{name} must be ND of shape (1,), ({size},), or that along axis {axis} and 1 elsewhere (x is {shape}), "
        f"got {tuple(tensor.shape)}",
    )


def output(
    x: torch.Tensor,
    scales: torch.Tensor,
    zero_points: torch.Tensor | None,
    dtype: torch.dtype,
    axis: int,
    div_mode: bool,
) -> tuple[list[int], torch.dtype]:
    """Checks the arguments; returns the output's shape and dtype."""
    require_dtype(OP, "x", x, FLOATS)
    require(OP, 1 <= x.dim() <= MAX_DIMS, f"x must have 1 to {MAX_DIMS} axes, got {x.dim()}")
    require_dtype(OP, "scales", scales, FLOATS)
    along = channel_axis(x, axis, div_mode)
    _check_channels("scales", scales, x, along, axis)
    if zero_points is not None:
        require_dtype(OP, "zero_points", zero_points, INTEGERS + FLOATS if div_mode else FLOATS)
        _check_channels("zero_points", zero_points, x, along, axis)
    require_allowed(OP, "dtype", dtype, STORED[div_mode], f"with div_mode={div_mode}")
    shape = list(x.shape)
    if dtype == torch.quint4x2:
        require(OP, shape[-1] % INT4_PER_WORD == 0, f"x last dim must be divisible by 8 for int4, got {shape[-1]}")
        shape[-1] //= INT4_PER_WORD
    return shape, STORED[div_mode][dtype]


def fake(
    x: torch.Tensor,
    scales: torch.Tensor,
    zero_points: torch.Tensor | None,
    dtype: torch.dtype,
    axis: int = 1,
    div_mode: bool = True,
) -> torch.Tensor:
    """Fake kernel."""
    shape, stored = output(x, scales, zero_points, dtype, axis, div_mode)
    return x.new_empty(shape, dtype=stored)


def samples() -> Iterator[Sample]:
    """Valid calls."""
    generator = torch.Generator().manual_seed(0)
    x = 60 * torch.randn(19, 24, generator=generator)
    scales = torch.rand(24, generator=generator) + 0.5
    codes = torch.randint(-9, 10, (24,), generator=generator)
    yield Sample("int8", (x, scales, codes.int(), torch.int8))
    yield Sample("uint8", (x.half(), scales, codes.to(torch.uint8), torch.quint8))
    yield Sample("int32", (x, scales[:1] / 1000, None, torch.qint32))
    yield Sample("rows", (x, scales[:19], codes[:19].int(), torch.int8, 0))
    yield Sample("multiply", (x, scales, codes.float(), torch.qint8, -1, False))
    yield Sample("multiply rows", (x, scales[:19, None], None, torch.int8, -2, False))
    yield Sample("int4", (x / 10, scales, None, torch.quint4x2, 1, False))
    yield Sample("transposed", (x.t(), scales[:19], None, torch.int8))
    yield Sample("threads", (x.repeat(40, 10), scales.repeat(10), None, torch.int8))
