# SPDX-License-Identifier: Apache-2.0
"""``torch_npu.profiler`` over ``torch.profiler``: what the host did. Settings of a chip are kept, not used."""

from __future__ import annotations

from torch.profiler import ProfilerAction

from anynpu.compat.errors import module_getattr, public_names
from torch_npu.profiler import dynamic_profile
from torch_npu.profiler.experimental_config import (
    AiCMetrics,
    ExportType,
    HostSystem,
    ProfilerLevel,
    _ExperimentalConfig,
    supported_ai_core_metrics,
    supported_export_type,
    supported_profiler_level,
)
from torch_npu.profiler.profiler import (
    ProfilerActivity,
    _KinetoProfile,
    analyse,
    profile,
    schedule,
    supported_activities,
    tensorboard_trace_handler,
)

__all__ = public_names(__name__, globals())

__getattr__ = module_getattr(__name__, globals())
