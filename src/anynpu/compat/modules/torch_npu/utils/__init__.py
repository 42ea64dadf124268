# SPDX-License-Identifier: Apache-2.0
"""``torch_npu.utils``: checkpoints, and the cores that threads run on."""

from __future__ import annotations

import os
import pickle
from typing import Any

import torch

from anynpu.compat.errors import module_getattr

_cores = os.sched_getaffinity(0)  # of the process at its start


def save_async(
    obj: object,
    f: Any,
    pickle_module: Any = pickle,
    pickle_protocol: int = 2,
    _use_new_zipfile_serialization: bool = True,
    _disable_byteorder_record: bool = False,
    model: torch.nn.Module | None = None,
) -> None:
    """``torch.save``, done when it returns: what is saved may be written to from then on."""
    torch.save(obj, f, pickle_module, pickle_protocol, _use_new_zipfile_serialization, _disable_byteorder_record)


def set_thread_affinity(core_range: list[int] | list[list[int]] | None = None) -> None:
    """Keeps the calling thread on cores, ``[first, last]`` or a list of such ranges; None stands for all."""
    if core_range is None:
        reset_thread_affinity()
        return
    ranges = core_range if core_range and isinstance(core_range[0], list) else [core_range]
    for each in ranges:
        if len(each) != 2 or not 0 <= each[0] <= each[1]:
            raise ValueError(f"set_thread_affinity: a range must be [first, last] with first <= last, got {each}")
    os.sched_setaffinity(0, {core for first, last in ranges for core in range(first, last + 1)})


def reset_thread_affinity() -> None:
    """Lets the calling thread run on the cores that the process started with."""
    os.sched_setaffinity(0, _cores)


__getattr__ = module_getattr(__name__, globals())
