# SPDX-License-Identifier: Apache-2.0
"""Oracle of swiglu: float64, one rounding."""

from __future__ import annotations

import torch

from anynpu.ops.swiglu.spec import output_shape

_U = 2.0**-24  # half a unit in the last place of float32


def swiglu(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """first * sigmoid(first) * second of the halves along dim."""
    size = output_shape(x, dim)[dim]
    first, second = x.double().narrow(dim, 0, size), x.double().narrow(dim, size, size)
    return (first / (1 + torch.exp(-first)) * second).to(x.dtype).contiguous()


def error_bound(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """The exponential is right to 4 U of itself, sum, quotient and product add 3 U; at the end one spacing of the
    dtype. float32 has no exponential of more than 88, so that far below zero the result may be 0 instead."""
    limits = torch.finfo(x.dtype)
    size = output_shape(x, dim)[dim]
    far = 2.0**-118 * x.double().narrow(dim, size, size).abs()
    return swiglu(x, dim).double().abs() * (7 * _U + limits.eps) + far + limits.smallest_normal * limits.eps
