# SPDX-License-Identifier: Apache-2.0
"""quantize on CUDA out of tensor operations: it is bound by memory, and no model calls it in a loop."""

from __future__ import annotations

import torch

from anynpu.ops.int4_pack import int4_pack
from anynpu.ops.quantize import reference
from anynpu.ops.quantize.spec import output


def quantize(
    x: torch.Tensor,
    scales: torch.Tensor,
    zero_points: torch.Tensor | None,
    dtype: torch.dtype,
    axis: int = 1,
    div_mode: bool = True,
) -> torch.Tensor:
    """See ``anynpu.quantize``."""
    shape, stored = output(x, scales, zero_points, dtype, axis, div_mode)
    if dtype != torch.quint4x2:
        return reference.quantize(x, scales, zero_points, dtype, axis, div_mode)
    if x.numel() == 0:
        return x.new_empty(shape, dtype=stored)
    codes = reference.quantize(x, scales, zero_points, torch.int8, axis, div_mode).clamp(-8, 7)
    return int4_pack(codes.int().reshape(-1, codes.shape[-1])).reshape(shape)
