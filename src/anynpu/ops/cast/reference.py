# SPDX-License-Identifier: Apache-2.0
"""Oracle of cast: exact integers and fractions where torch's own conversion rounds twice or is undefined."""

from __future__ import annotations

from fractions import Fraction

import torch

from anynpu.ops.cast.spec import check


def cast(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """See ``anynpu.cast``; x.to(dtype) except where C++ leaves it undefined or torch goes through float32."""
    check(x, dtype)
    wide = x.dtype in (torch.float64, torch.int32, torch.int64, torch.uint32, torch.uint64)
    if x.dtype.is_floating_point and not dtype.is_floating_point and dtype != torch.bool:
        return _each(x, dtype, _truncate)
    if wide and dtype in (torch.float16, torch.bfloat16):
        return _each(x, dtype, _round)
    return x.to(dtype).contiguous()


def _each(x: torch.Tensor, dtype: torch.dtype, convert) -> torch.Tensor:
    return torch.tensor([convert(value, dtype) for value in x.flatten().tolist()], dtype=dtype).reshape(x.shape)


def _truncate(value: float, dtype: torch.dtype) -> int:
    low, high = torch.iinfo(dtype).min, torch.iinfo(dtype).max
    if value != value:
        return 0
    if value in (float("inf"), -float("inf")):
        return high if value > 0 else low
    return min(max(int(value), low), high)


def _round(value: float | int, dtype: torch.dtype) -> float:
    """The multiple of the spacing of ``dtype`` around ``value`` that is nearest to it, half to even."""
    if value != value or value in (0, float("inf"), -float("inf")):
        return value
    info = torch.finfo(dtype)
    exact = abs(Fraction(value))
    power = exact.numerator.bit_length() - exact.denominator.bit_length()  # its logarithm, or one above
    power -= exact < Fraction(2) ** power
    spacing = Fraction(info.eps) * max(Fraction(2) ** power, Fraction(info.smallest_normal))
    nearest = round(exact / spacing) * spacing
    magnitude = float("inf") if nearest > Fraction(info.max) else float(nearest)
    return -magnitude if value < 0 else magnitude
