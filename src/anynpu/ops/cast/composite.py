# SPDX-License-Identifier: Apache-2.0
"""cast on CUDA out of tensor operations: torch's conversions, except where they round twice or are undefined."""

from __future__ import annotations

import torch

from anynpu.ops.cast.spec import check

_HALVES = (torch.float16, torch.bfloat16)
_BELOW_FLOAT32 = 29  # bits of a float64 that a float32 has not
_SPACING = 2.0**-133  # of the smallest bfloat16


def cast(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """See ``anynpu.cast``."""
    check(x, dtype)
    x = x.contiguous()
    if x.dtype.is_floating_point and not dtype.is_floating_point and dtype != torch.bool:
        return _truncated(x.double(), dtype)
    if dtype in _HALVES and x.dtype not in (torch.float32, *_HALVES):
        return _rounded_to_odd(_exact_or_sticky(x)).to(dtype)
    return x.to(dtype, copy=True)


def _truncated(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """float64 to an integer, saturating."""
    limits = torch.iinfo(dtype)
    if limits.bits < 64:
        return x.nan_to_num(nan=0.0).clamp(limits.min, limits.max).to(torch.int64).to(dtype)
    half = 2.0**63  # what is from here on has no int64
    if dtype == torch.int64:
        inside = torch.where((x >= -half) & (x < half), x, 0.0).to(torch.int64)
        return inside.masked_fill_(x >= half, limits.max).masked_fill_(x < -half, limits.min)
    low = torch.where((x > 0) & (x < half), x, 0.0).to(torch.int64)
    high = torch.where((x >= half) & (x < 2 * half), x - half, 0.0).to(torch.int64)
    bits = low + torch.where(x >= half, high | torch.iinfo(torch.int64).min, 0)
    return bits.masked_fill_(x >= 2 * half, -1).view(torch.uint64)


def _exact_or_sticky(x: torch.Tensor) -> torch.Tensor:
    """x in float64; of long integers the lowest bits only say whether one of them was set."""
    if x.dtype == torch.uint64:
        word = x.view(torch.int64)
        half = ((word >> 1) & torch.iinfo(torch.int64).max) | (word & 1)
        return torch.where(word < 0, 2.0 * _sticky(half), _sticky(word))
    return _sticky(x) if x.dtype == torch.int64 else x.double()


def _sticky(x: torch.Tensor) -> torch.Tensor:
    low = x & 0xFFF
    large = (x >= 2**52) | (x < -(2**52))
    return torch.where(large, (x - low) | ((low != 0).long() << 11), x).double()


def _rounded_to_odd(x: torch.Tensor) -> torch.Tensor:
    """A float32 between the same neighbours of 16 bits as the float64 x: its last bit is odd unless it is x."""
    bits = x.view(torch.int64)
    below = bits & ((1 << _BELOW_FLOAT32) - 1)
    odd = (bits - below) | ((below != 0).long() << _BELOW_FLOAT32)
    normal = odd.view(torch.float64)
    # float32 has fewer bits below 2**-126; there it is rounded to what bfloat16 has.
    return torch.where(x.abs() < 2.0**-126, (x / _SPACING).round() * _SPACING, normal).float()
