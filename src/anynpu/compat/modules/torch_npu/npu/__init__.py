# SPDX-License-Identifier: Apache-2.0
"""``torch.npu``: the runtime of the device that npu stands for, and the switches that only the vendor's has."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from anynpu.compat import soc
from anynpu.compat.device import device_count
from anynpu.compat.device import target as _target
from anynpu.compat.errors import module_getattr
from torch_npu.npu import amp, memory, random
from torch_npu.npu.amp import get_amp_supported_dtype
from torch_npu.npu.mstx import mstx
from torch_npu.npu.npu_config import (
    are_compatible_impl_enabled,
    get_device_limit,
    get_mm_bmm_format_nd,
    get_stream_limit,
    get_sync_debug_mode,
    get_task_queue_enable,
    is_jit_compile_false,
    reset_stream_limit,
    set_compile_mode,
    set_device_limit,
    set_mm_bmm_format_nd,
    set_op_timeout_ms,
    set_option,
    set_stream_limit,
    set_sync_debug_mode,
    set_task_queue_enable,
    use_compatible_impl,
)
from torch_npu.npu.utils import clear_npu_overflow_flag, get_npu_overflow_flag

if _target().type == "cpu":
    from torch_npu.npu import _graphs, _streams
    from torch_npu.npu import _host as _runtime
else:
    from torch_npu.npu import _cuda as _graphs
    from torch_npu.npu import _cuda as _runtime
    from torch_npu.npu import _cuda as _streams

is_available = _runtime.is_available
is_initialized = _runtime.is_initialized
init = _lazy_init = _runtime.init
current_device = _runtime.current_device
set_device = _runtime.set_device
is_bf16_supported = _runtime.is_bf16_supported
can_device_access_peer = _runtime.can_device_access_peer
synchronize = _runtime.synchronize
device = _runtime.device
device_of = _runtime.device_of

empty_cache = _runtime.empty_cache
mem_get_info = _runtime.mem_get_info
memory_allocated = _runtime.memory_allocated
memory_reserved = _runtime.memory_reserved
memory_cached = _runtime.memory_reserved
max_memory_allocated = _runtime.max_memory_allocated
max_memory_reserved = _runtime.max_memory_reserved
max_memory_cached = _runtime.max_memory_reserved
memory_stats = _runtime.memory_stats
reset_peak_memory_stats = _runtime.reset_peak_memory_stats
reset_max_memory_allocated = _runtime.reset_peak_memory_stats
reset_max_memory_cached = _runtime.reset_peak_memory_stats
reset_accumulated_memory_stats = _runtime.reset_accumulated_memory_stats
memory_summary = _runtime.memory_summary
memory_stats_as_nested_dict = _runtime.memory_stats_as_nested_dict
get_per_process_memory_fraction = _runtime.get_per_process_memory_fraction
get_allocator_backend = _runtime.get_allocator_backend
memory_snapshot = _runtime.memory_snapshot
MemPool = _runtime.MemPool
use_mem_pool = _runtime.use_mem_pool
set_per_process_memory_fraction = _runtime.set_per_process_memory_fraction
ipc_collect = _runtime.ipc_collect
utilization = _runtime.utilization

Stream = _streams.Stream
StreamContext = _streams.StreamContext
ExternalStream = _streams.ExternalStream
Event = _streams.Event
default_stream = _streams.default_stream
current_stream = _streams.current_stream
set_stream = _streams.set_stream
stream = _streams.stream

NPUGraph = _graphs.NPUGraph
graph = _graphs.graph
graph_pool_handle = _graphs.graph_pool_handle
make_graphed_callables = _graphs.make_graphed_callables
is_current_stream_capturing = _graphs.is_current_stream_capturing
if _target().type == "cpu":
    _streams.provide()
    SyncLaunchStream = _streams.SyncLaunchStream
    ExternalEvent = _graphs.ExternalEvent
    graph_task_group_begin = _graphs.graph_task_group_begin
    graph_task_group_end = _graphs.graph_task_group_end
    graph_task_update_begin = _graphs.graph_task_update_begin
    graph_task_update_end = _graphs.graph_task_update_end

default_generators = _runtime.default_generators
manual_seed = _runtime.manual_seed
manual_seed_all = _runtime.manual_seed_all
seed = _runtime.seed
seed_all = _runtime.seed_all
initial_seed = _runtime.initial_seed
get_rng_state = _runtime.get_rng_state
set_rng_state = _runtime.set_rng_state
get_rng_state_all = _runtime.get_rng_state_all
set_rng_state_all = _runtime.set_rng_state_all

# The legacy types, such as torch.npu.FloatTensor and torch.npu.FloatStorage.
_types = torch if _target().type == "cpu" else torch.cuda
_TYPES = ("Bool", "Byte", "Char", "Short", "Int", "Long", "Half", "BFloat16", "Float", "Double")
_NAMES = [f"{name}{kind}" for name in _TYPES for kind in ("Tensor", "Storage")]
globals().update({name: getattr(_types, name) for name in _NAMES})

# Switches of the vendor's compiler and arithmetic. They change how a chip computes: kept, not used.
config = SimpleNamespace(allow_internal_format=True)
conv = SimpleNamespace(allow_hf32=True)
matmul = SimpleNamespace(allow_hf32=False)
aclnn = SimpleNamespace(allow_hf32=False)


def set_autocast_enabled(enable: bool) -> None:
    torch.set_autocast_enabled("npu", enable)


def is_autocast_enabled() -> bool:
    return torch.is_autocast_enabled("npu")


def set_autocast_dtype(dtype: torch.dtype) -> None:
    torch.set_autocast_dtype("npu", dtype)


def get_autocast_dtype() -> torch.dtype:
    return torch.get_autocast_dtype("npu")


class _DeviceProperties(NamedTuple):
    name: str
    total_memory: int
    cube_core_num: int
    vector_core_num: int

    @property
    def multi_processor_count(self) -> int:
        """The name that programs for CUDA ask for."""
        return self.cube_core_num


def host_empty_cache() -> None:
    """Pinned memory that nobody uses is not kept."""


def get_device_name(device: Any = None) -> str:
    """The chip of ``anynpu.install(soc=...)`` or ``ANYNPU_SOC``."""
    return soc.name()


def get_soc_version() -> int:
    """The published number of the reported chip; -1 when it has none."""
    return soc.version()


def get_device_properties(device: Any = None) -> _DeviceProperties:
    """The reported chip with this machine's memory and core count."""
    return _DeviceProperties(soc.name(), mem_get_info(device)[1], os.cpu_count() or 1, os.cpu_count() or 1)


def get_device_capability(device: Any = None) -> None:
    """None, as published: chips have no capability number."""


def _is_in_bad_fork() -> bool:
    return False


from torch_npu.npu import graphs, streams  # noqa: E402  of what is above

__getattr__ = module_getattr(__name__, globals())
