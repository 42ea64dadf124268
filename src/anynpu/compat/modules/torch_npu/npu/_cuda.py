# SPDX-License-Identifier: Apache-2.0
"""``torch.npu`` when npu stands for CUDA: the functions of torch.cuda, for devices named npu."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.cuda import CUDAGraph as NPUGraph
from torch.cuda import Event, ExternalStream, MemPool, Stream, StreamContext, graph

from anynpu._device_errors import check_device_errors
from anynpu.compat.device import names_npu, real_device


def _with_mapped_devices(function: Callable[..., Any]) -> Callable[..., Any]:
    def real(value: Any) -> Any:
        return real_device(value) if names_npu(value) else value

    @functools.wraps(function)
    def mapped(*args: Any, **kwargs: Any) -> Any:
        return function(*map(real, args), **{name: real(value) for name, value in kwargs.items()})

    return mapped


class device(torch.cuda.device):
    """Selects a device within the block."""

    def __init__(self, device: Any) -> None:
        super().__init__(real_device(device) if names_npu(device) else device)


device_of = torch.cuda.device_of


def synchronize(device: Any = None) -> None:
    """Waits for a GPU, and raises what its kernels found wrong in the data, as a card does."""
    chosen = real_device(device) if names_npu(device) else device
    torch.cuda.synchronize(chosen)
    check_device_errors(torch.cuda.current_device() if chosen is None else chosen)


torch.cuda.init()
default_generators = torch.cuda.default_generators

__all__ = [
    "Event",
    "ExternalStream",
    "MemPool",
    "NPUGraph",
    "Stream",
    "StreamContext",
    "default_generators",
    "device",
    "device_of",
    "graph",
    "synchronize",
]


def __getattr__(name: str) -> Any:
    return _with_mapped_devices(getattr(torch.cuda, name))
