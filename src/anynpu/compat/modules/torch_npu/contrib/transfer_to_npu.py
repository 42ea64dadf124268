# SPDX-License-Identifier: Apache-2.0
"""Importing this lets scripts written for CUDA run on npu: ``torch.cuda`` becomes ``torch.npu``, ``"cuda"`` ``"npu"``.

Nothing happens when npu stands for CUDA: such scripts run as they are.
"""

from __future__ import annotations

import functools
import sys
from types import FunctionType, ModuleType
from typing import Any

import torch

from anynpu.compat.device import adopt_cuda_names, target

# What looks for a GPU to compile for: there is none.
_COMPILER = ("torch._inductor", "torch._dynamo.device_interface", "torch.utils._triton")


def _except_for_the_compiler(original: Any, function: Any) -> Any:
    """``function``, but ``original`` when torch's compiler calls: it must not look for the properties of a GPU."""

    @functools.wraps(function)
    def choose(*args: Any, **kwargs: Any) -> Any:
        caller = sys._getframe(1).f_globals.get("__name__", "")
        return (original if caller.startswith(_COMPILER) else function)(*args, **kwargs)

    return choose


def _adopt_functions(cuda: ModuleType, npu: ModuleType) -> None:
    for name, function in vars(npu).items():
        original = getattr(cuda, name, None)
        if name.startswith("_") or name == "is_initialized":  # torch.cuda asks itself before it touches a driver
            continue
        if isinstance(function, FunctionType) and isinstance(original, FunctionType):
            setattr(cuda, name, _except_for_the_compiler(original, function))


def _adopt() -> None:
    for cuda, npu in (
        (torch.cuda, torch.npu),
        (torch.cuda.random, torch.npu.random),
        (torch.cuda.memory, torch.npu.memory),
    ):
        _adopt_functions(cuda, npu)
    torch.cuda.is_available = torch.compiler.assume_constant_result(torch.cuda.is_available)
    classes = ("Stream", "ExternalStream", "StreamContext", "Event", "device", "graph")
    for name in (*classes, *map("{}Tensor".format, torch.npu._TYPES)):
        setattr(torch.cuda, name, getattr(torch.npu, name))
    torch.cuda.CUDAGraph = torch.npu.NPUGraph
    torch.distributed.is_nccl_available = torch.distributed.is_hccl_available
    _adopt_autocast()


def _adopt_autocast() -> None:
    """Functions of autocast that mean CUDA where no device is named."""
    torch.get_autocast_gpu_dtype = torch.npu.get_autocast_dtype
    torch.set_autocast_gpu_dtype = torch.npu.set_autocast_dtype
    torch.cuda.amp.custom_fwd = functools.partial(torch.amp.custom_fwd, device_type="npu")
    torch.cuda.amp.custom_bwd = functools.partial(torch.amp.custom_bwd, device_type="npu")
    enabled = torch.is_autocast_enabled
    torch.is_autocast_enabled = functools.wraps(enabled)(lambda device_type="npu": enabled(device_type))


if target().type == "cpu":
    adopt_cuda_names()
    _adopt()
