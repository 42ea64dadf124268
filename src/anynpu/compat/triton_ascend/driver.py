# SPDX-License-Identifier: Apache-2.0
"""The driver of Triton's backend ``npu``: what programs ask of the device before they start kernels."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

from anynpu.compat import soc


def _properties(device: Any = None) -> dict[str, int]:
    """As many cores as the CPU has: kernels start a program for each, and the interpreter runs one after the other."""
    cores = os.cpu_count() or 1
    return {"num_aicore": cores, "num_vectorcore": cores, "max_shared_mem": 192 * 1024}


def _benchmark(kernel_call: Callable[[], Any], quantiles: Sequence[float] = (0.5,), **options: Any) -> list[float]:
    """Milliseconds of one call, for each of ``quantiles``: enough to choose a configuration in an interpreter."""
    start = time.perf_counter()
    kernel_call()
    return [1e3 * (time.perf_counter() - start)] * len(quantiles)


class InterpreterDriver(DriverBase):
    """Active where Triton interprets kernels and no GPU's driver is."""

    def __init__(self) -> None:
        self.utils = SimpleNamespace(get_device_properties=_properties)

    @classmethod
    def is_active(cls) -> bool:
        """Whether this driver is the one to take."""
        return os.environ.get("TRITON_INTERPRET") == "1" and not torch.cuda.is_available()

    def map_python_to_cpp_type(self, ty: str) -> str:
        """Raises NotImplementedError: nothing is compiled."""
        raise NotImplementedError("kernels for npu run in Triton's interpreter, which has no C++ types")

    def get_current_target(self) -> GPUTarget:
        """The reported chip."""
        return GPUTarget("npu", soc.name(), 0)

    def get_active_torch_device(self) -> torch.device:
        """The device name npu."""
        return torch.device("npu", 0)

    def get_benchmarker(self) -> Callable[..., list[float]]:
        """What autotuning times kernels with."""
        return _benchmark
