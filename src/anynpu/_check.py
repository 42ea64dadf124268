# SPDX-License-Identifier: Apache-2.0
"""Argument checks with the house sentence: operator, argument, rule, expected, got. They run on fake tensors too."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch


def dtype_name(dtype: torch.dtype) -> str:
    """``torch.float16`` -> ``float16``."""
    return str(dtype).removeprefix("torch.")


def require_type(op: str, name: str, value: object, types: type | tuple[type, ...], expected: str) -> None:
    """``value`` is one of ``types``, which ``expected`` calls by their names."""
    if not isinstance(value, types):
        raise TypeError(f"{op}: {name} must be {expected}, got {type(value).__name__}")


def require_tensor(op: str, name: str, value: object) -> None:
    """``value`` is a tensor."""
    require_type(op, name, value, torch.Tensor, "a tensor")


def require_module(op: str, value: object) -> None:
    """The model is a module."""
    require_type(op, "model", value, torch.nn.Module, "a module")


def require_ints(op: str, **values: object) -> None:
    """All of the named values are ints."""
    for name, value in values.items():
        require_type(op, name, value, int, "an int")


def path_of(op: str, name: str, value: object) -> Path:
    """The path that ``value`` is."""
    require_type(op, name, value, (str, os.PathLike), "a path")
    return Path(value)


def require_dtype(op: str, name: str, tensor: torch.Tensor, allowed: Sequence[torch.dtype]) -> None:
    """``tensor`` is a tensor, and its dtype is one of ``allowed``."""
    require_tensor(op, name, tensor)
    require_allowed(op, name, tensor.dtype, allowed)


def require_allowed(op: str, name: str, dtype: torch.dtype, allowed: Iterable[torch.dtype], why: str = "") -> None:
    """``dtype`` is one of ``allowed``; ``why`` says in which calls."""
    if dtype not in allowed:
        expected = " or ".join(map(dtype_name, allowed)) + (why and f" {why}")
        raise TypeError(f"{op}: {name} must be {expected}, got {dtype_name(dtype)}")


def require(op: str, condition: bool, sentence: str) -> None:
    """``condition`` holds; otherwise a ValueError with ``sentence``, which names argument, rule, expected and got."""
    if not condition:
        raise ValueError(f"{op}: {sentence}")


def require_last_axis(op: str, x: torch.Tensor, size: int) -> None:
    """Rows of ``x`` are ``size`` long: ``reshape(-1, size)`` would cut others into rows that mean nothing."""
    if x.shape[-1:] != (size,):
        raise ValueError(f"{op}: the last axis of x must be {size}, got shape {tuple(x.shape)}")
