# SPDX-License-Identifier: Apache-2.0
"""Argument checks with the house sentence: operator, argument, rule, expected, got. They run on fake tensors too."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def dtype_name(dtype: torch.dtype) -> str:
    """``torch.float16`` -> ``float16``."""
    return str(dtype).removeprefix("torch.")


def require_tensor(op: str, name: str, value: object) -> None:
    """``value`` is a tensor."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(value).__name__}")


def require_dtype(op: str, name: str, tensor: torch.Tensor, allowed: Sequence[torch.dtype]) -> None:
    """The dtype of ``tensor`` is one of ``allowed``."""
    if tensor.dtype not in allowed:
        expected = " or ".join(dtype_name(dtype) for dtype in allowed)
        raise TypeError(f"{op}: {name} must be {expected}, got {dtype_name(tensor.dtype)}")


def require(op: str, condition: bool, sentence: str) -> None:
    """``condition`` holds; otherwise a ValueError with ``sentence``, which names argument, rule, expected and got."""
    if not condition:
        raise ValueError(f"{op}: {sentence}")


def require_last_axis(op: str, x: torch.Tensor, size: int) -> None:
    """Rows of ``x`` are ``size`` long: ``reshape(-1, size)`` would cut others into rows that mean nothing."""
    if x.shape[-1:] != (size,):
        raise ValueError(f"{op}: the last axis of x must be {size}, got shape {tuple(x.shape)}")
