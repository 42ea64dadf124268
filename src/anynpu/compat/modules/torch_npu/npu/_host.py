# SPDX-License-Identifier: Apache-2.0
"""``torch.npu`` when npu stands for the CPU: work done when a call returns, memory of this process.

A process that shares the machine with others may select a device of another index; it is the same CPU.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import resource
import threading
from collections.abc import Iterator
from typing import Any

import torch

from anynpu.compat.device import real_device

_current = threading.local()


def is_available() -> bool:
    """Always: the host is there."""
    return True


def is_initialized() -> bool:
    return True


def init() -> None:
    """Nothing to do on the host."""


def current_device() -> int:
    """The index that this thread selected."""
    return getattr(_current, "index", 0)


def set_device(device: Any) -> None:
    """Selects an index; all are the same CPU."""
    real_device(device)
    index = device if isinstance(device, int) else torch.device(device).index
    if index is not None:
        _current.index = index


def is_bf16_supported() -> bool:
    return True


def can_device_access_peer(device_id: int, peer_device_id: int) -> bool:
    return False


def synchronize(device: Any = None) -> None:
    """Nothing to wait for: operators are done when they return. Checks the index."""
    if device is not None:
        real_device(device)


def empty_cache() -> None:
    """Nothing is cached."""


def mem_get_info(device: Any = None) -> tuple[int, int]:
    """Free and total bytes of the machine's memory.

    Free is what was available when the process first asked, less what it has taken since: as on a device of its own,
    whatever other processes do.
    """
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(max(_available_at_first() - memory_allocated(), 0), total), total


@functools.cache
def _available_at_first() -> int:
    """Bytes that this process had or could get when it first asked."""
    with open("/proc/meminfo") as meminfo:
        kibibytes = next(line.split()[1] for line in meminfo if line.startswith("MemAvailable:"))
    return int(kibibytes) * 1024 + memory_allocated()


def memory_allocated(device: Any = None) -> int:
    """Resident bytes of this process."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def max_memory_allocated(device: Any = None) -> int:
    """Peak resident bytes of this process."""
    return max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, memory_allocated())


memory_reserved = memory_cached = memory_allocated
max_memory_reserved = max_memory_cached = max_memory_allocated


def memory_stats(device: Any = None) -> dict[str, int]:
    """The figures above under the allocator's names; the host never fails to give memory and goes on."""
    return {
        "allocated_bytes.all.current": memory_allocated(),
        "allocated_bytes.all.peak": max_memory_allocated(),
        "reserved_bytes.all.current": memory_reserved(),
        "reserved_bytes.all.peak": max_memory_reserved(),
        "num_alloc_retries": 0,
        "num_ooms": 0,
    }


def memory_stats_as_nested_dict(device: Any = None) -> dict[str, Any]:
    """The same, a dict for each part of a name."""
    nested: dict[str, Any] = {}
    for name, number in memory_stats(device).items():
        *parts, last = name.split(".")
        functools.reduce(lambda inner, part: inner.setdefault(part, {}), parts, nested)[last] = number
    return nested


def get_allocator_backend() -> str:
    """The published name of an allocator that the program did not bring."""
    return "native"


def reset_peak_memory_stats(device: Any = None) -> None:
    """Accepted; the peak is the process's and stays."""


reset_max_memory_allocated = reset_max_memory_cached = reset_accumulated_memory_stats = reset_peak_memory_stats


def memory_summary(device: Any = None, abbreviated: bool = False) -> str:
    """The figures above in a table."""
    sizes = {name: number for name, number in memory_stats(device).items() if "bytes" in name}
    mebibytes = {name: f"{number / 2**20:>12,.0f} MiB" for name, number in sizes.items()}
    return "\n".join(("memory of this process", *(f"{name:<30}{size}" for name, size in mebibytes.items())))


def memory_snapshot(mempool_id: tuple[int, int] | None = None) -> list[dict[str, Any]]:
    """The segments that an allocator keeps: none, the host's memory goes back where it came from."""
    return []


class MemPool:
    """A pool that memory may come from: a name, all memory is the host's. Its options have no effect."""

    def __init__(self, allocator: Any = None, use_on_oom: bool = False, no_split: bool = False) -> None:
        if allocator is not None:
            raise NotImplementedError("MemPool: allocator, from which memory would come, is not implemented by anynpu")
        self.allocator = None
        self.id = (0, next(_pools))

    def use_count(self) -> int:
        """How many hold the pool: who asks."""
        return 1

    def snapshot(self) -> list[dict[str, Any]]:
        """Its segments."""
        return memory_snapshot(self.id)


@contextlib.contextmanager
def use_mem_pool(pool: MemPool, device: Any = None) -> Iterator[None]:
    """No effect but checks: memory of the block is the host's, as all is."""
    if not isinstance(pool, MemPool):
        raise TypeError(f"use_mem_pool: pool must be a MemPool, got {type(pool).__name__}")
    synchronize(device)
    yield


_pools = itertools.count(1)
_fraction = 1.0


def set_per_process_memory_fraction(fraction: float, device: Any = None) -> None:
    """Checks and keeps the fraction; the host sets no limit."""
    global _fraction
    if not isinstance(fraction, float):
        raise TypeError(f"set_per_process_memory_fraction: fraction must be a float, got {type(fraction).__name__}")
    if not 0 <= fraction <= 1:
        raise ValueError(f"set_per_process_memory_fraction: fraction must be in [0, 1], got {fraction}")
    _fraction = fraction


def get_per_process_memory_fraction(device: Any = None) -> float:
    """The last fraction that was set, else 1."""
    return _fraction


def ipc_collect() -> None:
    """Nothing to collect."""


def utilization(device: Any = None) -> int:
    """The load of the machine's cores over the last minute, in percent."""
    return min(100, round(100 * os.getloadavg()[0] / (os.cpu_count() or 1)))


def manual_seed(seed: int) -> None:
    """Seeds the generator of the host, which draws for npu too."""
    torch.default_generator.manual_seed(seed)


manual_seed_all = manual_seed


def seed() -> None:
    torch.default_generator.seed()


seed_all = seed


def initial_seed() -> int:
    return torch.default_generator.initial_seed()


def get_rng_state(device: Any = None) -> torch.Tensor:
    return torch.default_generator.get_state()


def set_rng_state(new_state: torch.Tensor, device: Any = None) -> None:
    torch.default_generator.set_state(new_state)


def get_rng_state_all() -> list[torch.Tensor]:
    return [get_rng_state()]


def set_rng_state_all(new_states: list[torch.Tensor]) -> None:
    for state in new_states:
        set_rng_state(state)


class device:
    """Selects a device within the block."""

    def __init__(self, device: Any) -> None:
        self._device = None if device == -1 else device
        if self._device is not None:
            real_device(self._device)

    def __enter__(self) -> None:
        self._outer = current_device()
        if self._device is not None:
            set_device(self._device)

    def __exit__(self, *error: Any) -> None:
        set_device(self._outer)


class device_of(device):
    """Selects the device of a tensor within the block."""

    def __init__(self, obj: Any) -> None:
        super().__init__(None)


default_generators = (torch.default_generator,)
