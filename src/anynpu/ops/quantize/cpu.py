# SPDX-License-Identifier: Apache-2.0
"""CPU kernel of quantize."""

from __future__ import annotations

import torch

from anynpu import _native
from anynpu.ops.quantize.spec import output

_quantize = _native.Call("quantize", tensors=4, scalars="q2i")


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
    y = torch.empty(shape, dtype=stored)
    _quantize(x, scales, zero_points, y, scalars=(axis, div_mode, 0))
    return y
