# SPDX-License-Identifier: Apache-2.0
"""Tensors beside memory that nobody may touch: to read or write past their end, or before their start, is a crash."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence

import torch

_protect = ctypes.CDLL(None, use_errno=True).mprotect
_protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def fenced(shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype, before: bool = False) -> torch.Tensor:
    """Zeros; the fence is behind them, or before them."""
    if 0 in shape:
        return torch.empty_strided(shape, strides, dtype=dtype)
    size = dtype.itemsize * (1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)))
    pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = torch.frombuffer(mmap.mmap(-1, pages + mmap.PAGESIZE), dtype=torch.uint8)
    assert _protect(memory.data_ptr() + (0 if before else pages), mmap.PAGESIZE, 0) == 0
    begin = mmap.PAGESIZE if before else pages - size
    values = memory[begin : begin + size].view(dtype)
    return values.as_strided(tuple(shape), tuple(strides), values.storage_offset())


def fenced_copy(tensor: torch.Tensor, before: bool = False) -> torch.Tensor:
    """A tensor of the same values and strides."""
    copy = fenced(tensor.shape, tensor.stride(), tensor.dtype, before)
    if tensor.numel() > 0:
        count = 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
        lines = [each.as_strided((count,), (1,), each.storage_offset()) for each in (copy, tensor)]
        lines[0].copy_(lines[1])  # a copy of overlapping values would be refused
    return copy
