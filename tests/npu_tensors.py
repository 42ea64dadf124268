# SPDX-License-Identifier: Apache-2.0
"""Random tensors on the npu device, which an installed anynpu.compat gives torch."""

from __future__ import annotations

import torch


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def reals(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """Normally distributed."""
    return torch.randn(shape, generator=_generator(seed)).to(dtype).npu()


def halves(*shape: int, seed: int = 0) -> torch.Tensor:
    """As :func:`reals`, in float16."""
    return reals(*shape, dtype=torch.float16, seed=seed)


def integers(low: int, high: int, *shape: int, dtype: torch.dtype = torch.int8, seed: int = 0) -> torch.Tensor:
    """In [low, high)."""
    return torch.randint(low, high, shape, dtype=dtype, generator=_generator(seed)).npu()


def codes(*shape: int, seed: int = 0) -> torch.Tensor:
    """All of int8."""
    return integers(-128, 128, *shape, seed=seed)


def nibbles(*shape: int, seed: int = 0) -> torch.Tensor:
    """int32 in [-8, 7]."""
    return integers(-8, 8, *shape, dtype=torch.int32, seed=seed)
