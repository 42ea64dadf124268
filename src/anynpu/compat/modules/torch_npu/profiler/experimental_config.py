# SPDX-License-Identifier: Apache-2.0
"""What to record of a chip: names that are kept, not used."""

from __future__ import annotations

from dataclasses import dataclass

from anynpu.compat.errors import module_getattr


class ProfilerLevel:
    """How much of the chip to record."""

    Level_none = "Level_none"
    Level0 = "Level0"
    Level1 = "Level1"
    Level2 = "Level2"


class AiCMetrics:
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


class ExportType:
    """File formats of the vendor's analysis."""

    Text = "text"
    Db = "db"


class HostSystem:
    """What to record of the host."""

    CPU = "cpu"
    MEM = "mem"
    DISK = "disk"
    NETWORK = "network"
    OSRT = "osrt"
    NUMA = "numa"


def _values(choices: type) -> set[str]:
    return {value for name, value in vars(choices).items() if not name.startswith("__")}


def supported_profiler_level() -> set[str]:
    """All, without effect."""
    return _values(ProfilerLevel)


def supported_ai_core_metrics() -> set[str]:
    """All, without effect."""
    return _values(AiCMetrics)


def supported_export_type() -> set[str]:
    """Both, without effect."""
    return _values(ExportType)


@dataclass
class _ExperimentalConfig:
    """Keeps the published options; another is a TypeError."""

    profiler_level: str = ProfilerLevel.Level0
    aic_metrics: str = AiCMetrics.PipeUtilization
    l2_cache: bool = False
    msprof_tx: bool = False
    mstx: bool = False
    data_simplification: bool = True
    record_op_args: bool = False
    op_attr: bool = False
    gc_detect_threshold: float | None = None
    export_type: str | list[str] = ExportType.Text
    host_sys: list[str] | None = None
    mstx_domain_include: list[str] | None = None
    mstx_domain_exclude: list[str] | None = None
    sys_io: bool = False
    sys_interconnection: bool = False


__getattr__ = module_getattr(__name__, globals())
