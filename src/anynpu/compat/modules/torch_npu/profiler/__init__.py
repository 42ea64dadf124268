# SPDX-License-Identifier: Apache-2.0
"""``torch_npu.profiler`` over ``torch.profiler``: what the host did. Settings of a chip are kept, not used."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from enum import Enum
from types import SimpleNamespace
from typing import Any

import torch
from torch.profiler import ProfilerAction as ProfilerAction

from anynpu.compat.device import target
from anynpu.compat.errors import module_getattr


class ProfilerActivity(Enum):
    """What to record. Work on npu is the real device's."""

    CPU = 0
    NPU = 1


class ProfilerLevel(Enum):
    """How much of the chip to record."""

    Level_none = "Level_none"
    Level0 = "Level0"
    Level1 = "Level1"
    Level2 = "Level2"


class AiCMetrics(Enum):
    """Counters of the chip's cores."""

    AiCoreNone = "ACL_AICORE_NONE"
    PipeUtilization = "ACL_AICORE_PIPE_UTILIZATION"
    ArithmeticUtilization = "ACL_AICORE_ARITHMETIC_UTILIZATION"
    Memory = "ACL_AICORE_MEMORY_BANDWIDTH"
    MemoryL0 = "ACL_AICORE_L0B_AND_WIDTH"
    MemoryUB = "ACL_AICORE_MEMORY_UB"
    ResourceConflictRatio = "ACL_AICORE_RESOURCE_CONFLICT_RATIO"
    L2Cache = "ACL_AICORE_L2_CACHE"
    MemoryAccess = "ACL_AICORE_MEMORY_ACCESS"


class ExportType(Enum):
    """File formats of the vendor's analysis."""

    Text = "text"
    Db = "db"


class _ExperimentalConfig(SimpleNamespace):
    """Keeps the published options as attributes."""


def supported_activities() -> set[ProfilerActivity]:
    """Both."""
    return set(ProfilerActivity)


def schedule(
    wait: int, active: int, warmup: int = 0, repeat: int = 0, skip_first: int = 0, **options: Any
) -> Callable[[int], ProfilerAction]:
    """``torch.profiler.schedule`` with the published order of arguments."""
    return torch.profiler.schedule(
        wait=wait, warmup=warmup, active=active, repeat=repeat, skip_first=skip_first, **options
    )


def tensorboard_trace_handler(
    dir_name: str | None = None, worker_name: str | None = None, analyse_flag: bool = True, async_mode: bool = False
) -> Callable[[torch.profiler.profile], None]:
    """Writes a trace for Chrome and Perfetto, ``<worker>.<time>.pt.trace.json``, into the folder or the current one."""
    return torch.profiler.tensorboard_trace_handler(dir_name or os.getcwd(), worker_name)


def _torch_activity(activity: Any) -> Any:
    if activity == ProfilerActivity.NPU and target().type == "cuda":
        return torch.profiler.ProfilerActivity.CUDA
    return torch.profiler.ProfilerActivity.CPU if isinstance(activity, ProfilerActivity) else activity


class profile(torch.profiler.profile):
    """``torch.profiler.profile`` with the published activities and ``experimental_config``, which has no effect."""

    def __init__(
        self,
        activities: Iterable[ProfilerActivity] | None = None,
        schedule: Callable[[int], ProfilerAction] | None = None,
        on_trace_ready: Callable[..., Any] | None = None,
        record_shapes: bool = False,
        profile_memory: bool = False,
        with_stack: bool = False,
        with_modules: bool = False,
        with_flops: bool = False,
        experimental_config: _ExperimentalConfig | None = None,
    ) -> None:
        super().__init__(
            activities={_torch_activity(each) for each in activities or ProfilerActivity},
            schedule=schedule,
            on_trace_ready=on_trace_ready,
            record_shapes=record_shapes,
            profile_memory=profile_memory,
            with_stack=with_stack,
            with_modules=with_modules,
            with_flops=with_flops,
        )


__getattr__ = module_getattr(__name__, globals())
