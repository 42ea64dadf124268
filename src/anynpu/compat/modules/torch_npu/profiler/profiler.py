# SPDX-License-Identifier: Apache-2.0
"""``torch.profiler`` under the names of ``torch_npu.profiler.profiler``."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerAction

from anynpu.compat.device import target
from anynpu.compat.errors import module_getattr
from torch_npu.profiler.experimental_config import _ExperimentalConfig


class ProfilerActivity(Enum):
    """What to record. Work on npu is the real device's."""

    CPU = 0
    NPU = 1


def supported_activities() -> set[ProfilerActivity]:
    """Both."""
    return set(ProfilerActivity)


def schedule(
    wait: int, active: int, warmup: int = 0, repeat: int = 0, skip_first: int = 0, skip_first_wait: int = 0
) -> Callable[[int], ProfilerAction]:
    """``torch.profiler.schedule`` with the published order of arguments."""
    return torch.profiler.schedule(
        wait=wait,
        warmup=warmup,
        active=active,
        repeat=repeat,
        skip_first=skip_first,
        skip_first_wait=skip_first_wait,
    )


def tensorboard_trace_handler(
    dir_name: str | None = None, worker_name: str | None = None, analyse_flag: bool = True, async_mode: bool = False
) -> Callable[[torch.profiler.profile], None]:
    """Writes a trace for Chrome and Perfetto below the folder or the current one, whatever the flags.

    Its path is the published one, ``<worker>_<process>_<time>_ascend_pt/ASCEND_PROFILER_OUTPUT/trace_view.json``.
    """
    worker = f"{worker_name or socket.gethostname()}_{os.getpid()}"

    def write(profiler: torch.profiler.profile) -> None:
        time = datetime.now().strftime("%Y%m%d%H%M%S%f")[:-3]
        folder = Path(dir_name or os.getcwd(), f"{worker}_{time}_ascend_pt", "ASCEND_PROFILER_OUTPUT")
        folder.mkdir(parents=True)
        profiler.export_chrome_trace(str(folder / "trace_view.json"))

    return write


def analyse(
    profiler_path: str, max_process_number: int | None = None, export_type: str | list[str] | None = None
) -> None:
    """Nothing is left to analyse: the handler wrote the trace, and there is no other result.

    Raises:
        RuntimeError: there is no folder of that name.
    """
    if not os.path.isdir(profiler_path):
        raise RuntimeError(f"analyse: profiler_path must be a folder, got {profiler_path}")


def _torch_activity(activity: Any) -> Any:
    if activity == ProfilerActivity.NPU and target().type == "cuda":
        return torch.profiler.ProfilerActivity.CUDA
    return torch.profiler.ProfilerActivity.CPU if isinstance(activity, ProfilerActivity) else activity


class _KinetoProfile(torch.profiler._KinetoProfile):
    """The torch class of this name with the published activities and ``experimental_config``, which has no effect."""

    def __init__(
        self,
        *,
        activities: Iterable[ProfilerActivity] | None = None,
        experimental_config: _ExperimentalConfig | None = None,
        **options: Any,
    ) -> None:
        stacks = torch.profiler._ExperimentalConfig(verbose=True) if options.get("with_stack") else None
        recorded = {_torch_activity(each) for each in activities or ProfilerActivity}
        super().__init__(activities=recorded, experimental_config=stacks, **options)

    def export_stacks(self, output_path: str, metric: str = "self_cpu_time_total") -> None:
        """Writes the stacks with their time, on npu that of the real device."""
        super().export_stacks(output_path, metric.replace("npu", target().type))

    @classmethod
    def enable_profiler_in_child_thread(cls, **options: bool) -> None:
        """No effect: a profile records the thread that started it, and those of the backward pass."""

    @classmethod
    def disable_profiler_in_child_thread(cls) -> None:
        """No effect."""


class profile(_KinetoProfile, torch.profiler.profile):
    """``torch.profiler.profile`` with the published activities; ``experimental_config`` and ``use_cuda`` do nothing."""

    def __init__(self, *, use_cuda: bool | None = None, **options: Any) -> None:
        super().__init__(**options)


__getattr__ = module_getattr(__name__, globals())
