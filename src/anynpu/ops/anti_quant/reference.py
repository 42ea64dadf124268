# SPDX-License-Identifier: Apache-2.0
"""Oracle of anti_quant: float64, one rounding."""

from __future__ import annotations

import torch

from anynpu.ops.anti_quant.spec import result_shape
from anynpu.ops.int4_pack.reference import int4_unpack


def _exact(x: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor | None, shape: list[int]) -> torch.Tensor:
    if x.dtype == torch.int32:
        x = int4_unpack(x.reshape(-1, x.shape[-1]).contiguous()).reshape(shape)
    shifted = x.double() if offset is None else x.double() + offset.double()
    return shifted * scale.double()


def anti_quant(
    x: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor | None = None, dtype: torch.dtype = torch.float16
) -> torch.Tensor:
    """(x + offset) * scale."""
    return _exact(x, scale, offset, result_shape(x, scale, offset, dtype)).to(dtype)


def error_bound(
    x: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor | None = None, dtype: torch.dtype = torch.float16
) -> torch.Tensor:
    """How far a result may be from the reference: two float32 roundings before, one spacing of ``dtype`` at the end."""
    exact = _exact(x, scale, offset, result_shape(x, scale, offset, dtype)).abs()
    limits = torch.finfo(dtype)
    return exact * (2 * torch.finfo(torch.float32).eps + limits.eps) + limits.smallest_normal * limits.eps
