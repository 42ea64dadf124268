# SPDX-License-Identifier: Apache-2.0
"""Argument rules, output shape and sample calls of quantize."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from anynpu._arguments import takes
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


class Arguments(NamedTuple):
    """Of one call, in the order of ``SCHEMA``."""

    x: torch.Tensor
    scales: torch.Tensor
    zero_points: torch.Tensor | None
    dtype: torch.dtype
    axis: int = 1
    div_mode: bool = True

    @property
    def channel_axis(self) -> int | None:
        """The axis of ``x`` that the scales run along, not negative; None when ``x`` has no such axis."""
        axes = self.x.dim()
        wanted = -1 if not self.div_mode and self.axis > -2 else self.axis
        return wanted % axes if -axes <= wanted < axes else None


def _check_channels(name: str, tensor: torch.Tensor, a: Arguments) -> None:
    if tensor.dim() == 1 and tensor.shape[0] == 1:
        return
    shape, axes, axis = tuple(a.x.shape), a.x.dim(), a.channel_axis
    require(OP, axis is not None, f"axis must be in [{-axes}, {axes - 1}] (x is {shape}), got {a.axis}")
    size = shape[axis]
    if tensor.dim() == 1:
        fits = tensor.shape[0] == size
    else:
        sizes = enumerate(tensor.shape)
        fits = tensor.dim() == axes and all(got == 1 or (i == axis and got == size) for i, got in sizes)
    require(
        OP,
        fits,
        f"{name} must be ND of shape (1,), ({size},), or that along axis {axis} and 1 elsewhere (x is {shape}), "
        f"got {tuple(tensor.shape)}",
    )


def output(a: Arguments) -> tuple[list[int], torch.dtype]:
    """Checks the arguments; returns the output's shape and dtype."""
    require_dtype(OP, "x", a.x, FLOATS)
    require(OP, 1 <= a.x.dim() <= MAX_DIMS, f"x must have 1 to {MAX_DIMS} axes, got {a.x.dim()}")
    require_dtype(OP, "scales", a.scales, FLOATS)
    _check_channels("scales", a.scales, a)
    if a.zero_points is not None:
        require_dtype(OP, "zero_points", a.zero_points, INTEGERS + FLOATS if a.div_mode else FLOATS)
        _check_channels("zero_points", a.zero_points, a)
    require_allowed(OP, "dtype", a.dtype, STORED[a.div_mode], f"with div_mode={a.div_mode}")
    shape = list(a.x.shape)
    if a.dtype == torch.quint4x2:
        require(OP, shape[-1] % INT4_PER_WORD == 0, f"x last dim must be divisible by 8 for int4, got {shape[-1]}")
        shape[-1] //= INT4_PER_WORD
    return shape, STORED[a.div_mode][a.dtype]


@takes(Arguments)
def fake(a: Arguments) -> torch.Tensor:
    """Fake kernel."""
    shape, stored = output(a)
    return a.x.new_empty(shape, dtype=stored)


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
