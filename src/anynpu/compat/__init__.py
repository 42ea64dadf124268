# SPDX-License-Identifier: Apache-2.0
"""The Ascend Python front end: ``torch_npu``, ``torchair`` and the device name ``npu``, with no arithmetic."""

from __future__ import annotations

import importlib
import sys
import threading

_lock = threading.RLock()  # importing torch_npu calls install again
_installed: str | None = None  # the device


def installed() -> bool:
    """Whether ``install`` has run in this process."""
    return _installed is not None


def install(device: str = "cpu", soc: str | None = None) -> None:
    """Provides ``import torch_npu``, ``import torchair`` and the device name ``npu`` in this process.

    Call it before the first ``import torch_npu``. Calling it again changes ``soc`` only; it cannot be undone.

    Args:
        device: what ``npu`` stands for, ``"cpu"`` or ``"cuda"``.
        soc: the chip to report, such as ``"Ascend910B3"``. Default: the variable ``ANYNPU_SOC``, else Ascend910B.

    Raises:
        ValueError: another device or an impossible chip name.
        RuntimeError: the real torch_npu is installed, CUDA is asked for and not there, or ``npu`` already stands for
            the other device.

    >>> anynpu.install()  # doctest: +SKIP
    >>> import torch, torch_npu  # doctest: +SKIP
    >>> torch.ones(2, device="npu").is_npu  # doctest: +SKIP
    True
    """
    import torch

    from anynpu.compat import collectives, finder, kernels, triton_ascend
    from anynpu.compat import device as npu_device
    from anynpu.compat import soc as chip

    global _installed
    if device not in ("cpu", "cuda"):
        raise ValueError(f"install: device must be 'cpu' or 'cuda', got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("install: device is 'cuda', but torch.cuda.is_available() is False")
    with _lock:
        if _installed not in (None, device):
            raise RuntimeError(f"install: npu already stands for {_installed} in this process, got {device!r}")
        if soc is not None or _installed is None:
            chip.choose(soc)
        if _installed is None:
            finder.refuse_the_real_one()
            sys.meta_path.insert(0, finder.Finder())
            npu_device.provide(device)
            kernels.provide()
            collectives.provide()
            triton_ascend.provide()
            _installed = device
            runtime = importlib.import_module("torch_npu.npu")
            torch._register_device_module(npu_device.NAME, runtime)
            npu_device.provide_accelerator(vars(runtime))
