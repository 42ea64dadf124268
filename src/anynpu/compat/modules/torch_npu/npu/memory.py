# SPDX-License-Identifier: Apache-2.0
"""``torch.npu.memory``: the memory of the device that npu stands for."""

from __future__ import annotations

from anynpu.compat.device import target as _target
from anynpu.compat.errors import module_getattr, not_implemented

if _target().type == "cpu":
    from torch_npu.npu import _host as _runtime
else:
    from torch_npu.npu import _cuda as _runtime

_FIGURES = ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved", "mem_get_info")
_STATISTICS = ("memory_stats", "memory_stats_as_nested_dict", "memory_summary", "get_allocator_backend")
_RESETS = ("empty_cache", "reset_peak_memory_stats", "reset_accumulated_memory_stats")
_FRACTIONS = ("get_per_process_memory_fraction", "set_per_process_memory_fraction")
_POOLS = ("MemPool", "use_mem_pool", "memory_snapshot")
_FUNCTIONS = (*_FIGURES, *_STATISTICS, *_RESETS, *_FRACTIONS, *_POOLS)
globals().update({name: getattr(_runtime, name) for name in _FUNCTIONS})

# Programs name the class in annotations, whether or not they make one.
NPUPluggableAllocator = not_implemented("torch.npu.memory.NPUPluggableAllocator")

__getattr__ = module_getattr(__name__, globals())
