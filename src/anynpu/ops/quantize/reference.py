# SPDX-License-Identifier: Apache-2.0
"""Oracle of quantize: the formula, step by step in float32 as it is defined, and the sum of div_mode in float64."""

from __future__ import annotations

import torch

from anynpu._arguments import takes
from anynpu.ops.int4_pack.reference import int4_pack
from anynpu.ops.quantize.spec import Arguments, output


@takes(Arguments)
def quantize(a: Arguments) -> torch.Tensor:
    """See ``anynpu.quantize``."""
    shape, stored = output(a)
    zero_points = torch.zeros(1, device=a.x.device) if a.zero_points is None else a.zero_points
    scales, zero_points = (_along(tensor, a.x.dim(), a.channel_axis) for tensor in (a.scales, zero_points))
    if a.div_mode:
        value = torch.round(a.x.float() / scales.float()).double().clamp(-(2**50), 2**50) + zero_points.double()
    else:
        value = (a.x.float() * scales.float() + zero_points.float()).double()
    low, high = (-8, 7) if a.dtype == torch.quint4x2 else (torch.iinfo(stored).min, torch.iinfo(stored).max)
    number = torch.where(value.isnan(), 0.0, value)
    codes = number.round().clamp(low, high).to(stored)
    if a.dtype == torch.quint4x2 and codes.numel() > 0:
        codes = int4_pack(codes.reshape(-1, codes.shape[-1]))
    return codes.reshape(shape)


def _along(tensor: torch.Tensor, ndim: int, axis: int | None) -> torch.Tensor:
    """A vector as a tensor of `ndim` axes that runs along `axis`."""
    if tensor.dim() > 1 or tensor.numel() == 1:
        return tensor
    return tensor.reshape([-1 if i == axis else 1 for i in range(ndim)])
