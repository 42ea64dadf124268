# SPDX-License-Identifier: Apache-2.0
"""``torch_npu.testing.common_utils``: inputs and conditions of tests."""

from __future__ import annotations

import contextlib
import functools
import unittest
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

import torch_npu
from anynpu.compat import soc
from anynpu.compat.errors import module_getattr

_ANY_FORMAT = -1


class SupportedDevices:
    """Skips a test unless the reported chip is of one of the series, such as ``["Ascend910B"]``."""

    def __init__(self, supported_devices: Sequence[str]) -> None:
        self._supported = tuple(supported_devices)

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            if not soc.name().startswith(self._supported):
                raise unittest.SkipTest(f"only for {', '.join(self._supported)}, the reported chip is {soc.name()}")
            return function(*args, **kwargs)

        return run


class SkipIfNotGteCANNVersion:
    """Runs the test: no CANN is involved, so no version of it is too old."""

    def __init__(self, cann_version: str) -> None:
        self.cann_version = cann_version

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return function


def get_npu_device() -> str:
    """The device of the tests."""
    return "npu:0"


def set_npu_device() -> None:
    """Selects the device of the tests."""
    torch.npu.set_device(get_npu_device())


def create_common_tensor(
    item: Sequence[Any], minValue: float, maxValue: float, device: str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Uniform values as a host tensor and a device tensor; ``item`` is (NumPy dtype, format, shape), format -1 any."""
    dtype, npu_format, shape = item
    values = np.random.uniform(minValue, maxValue, shape).astype(dtype)
    npu_input = torch.from_numpy(values).to(device or get_npu_device())
    if npu_format != _ANY_FORMAT:
        npu_input = torch_npu.npu_format_cast(npu_input, npu_format)
    return torch.from_numpy(values), npu_input


@contextlib.contextmanager
def freeze_rng_state() -> Iterator[None]:
    """Puts the random state back after the block."""
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)


__getattr__ = module_getattr(__name__, globals())
