# SPDX-License-Identifier: Apache-2.0
"""``torch_npu.npu.npu_config``: settings of the vendor's compiler, queues and cores, kept without effect."""

from __future__ import annotations

import os
from typing import Any

from anynpu.compat.device import real_device
from anynpu.compat.errors import module_getattr

_kept = {"jit_compile": False, "format_nd": True, "compatible": False, "sync_debug": 0, "task_queue": 1}
_device_limits: dict[int, dict[str, int]] = {}
_stream_limits: dict[tuple[int, int], dict[str, int]] = {}
_SYNC_DEBUG = ("default", "warn", "error")


def set_compile_mode(jit_compile: bool = False) -> None:
    """Keeps the choice between compiling operators and using built ones."""
    _kept["jit_compile"] = jit_compile


def is_jit_compile_false() -> bool:
    """The opposite of the last ``set_compile_mode``."""
    return not _kept["jit_compile"]


def set_option(option: dict[str, Any]) -> None:
    """Accepts a dict of the vendor's compiler options."""
    if not isinstance(option, dict):
        raise TypeError(f"set_option: option must be a dict, got {type(option).__name__}")


def set_mm_bmm_format_nd(is_nd: bool = True) -> None:
    """Keeps whether products take plain weights."""
    _kept["format_nd"] = bool(is_nd)


def get_mm_bmm_format_nd() -> bool:
    return _kept["format_nd"]


def use_compatible_impl(is_enable: bool) -> None:
    """Keeps whether operators are those that agree with other devices."""
    _kept["compatible"] = bool(is_enable)


def are_compatible_impl_enabled() -> bool:
    return _kept["compatible"]


def set_sync_debug_mode(debug_mode: int | str) -> None:
    """Keeps "default", "warn" or "error", or its number: nothing is synchronised that could be warned of."""
    if debug_mode not in (*_SYNC_DEBUG, 0, 1, 2):
        raise RuntimeError(f"set_sync_debug_mode: debug_mode must be in {_SYNC_DEBUG} or 0 to 2, got {debug_mode!r}")
    _kept["sync_debug"] = _SYNC_DEBUG.index(debug_mode) if isinstance(debug_mode, str) else debug_mode


def get_sync_debug_mode() -> int:
    return _kept["sync_debug"]


def set_task_queue_enable(mode: int | str) -> None:
    """Keeps the level of the queue, 0 to 2."""
    if str(mode) not in ("0", "1", "2"):
        raise RuntimeError(f"set_task_queue_enable: mode must be 0, 1 or 2, got {mode!r}")
    _kept["task_queue"] = int(mode)


def get_task_queue_enable() -> int:
    return _kept["task_queue"]


def set_op_timeout_ms(timeout: int) -> None:
    """Operators run as long as they take."""


def _limited(limit: dict[str, int], cube_num: int, vector_num: int) -> dict[str, int]:
    asked = {"cube_core_num": cube_num, "vector_core_num": vector_num}
    return limit | {name: number for name, number in asked.items() if number != -1}


def get_device_limit(device: int) -> dict[str, int]:
    """The cores that operators of a device were asked to use: those of the machine unless limited."""
    real_device(device)
    cores = os.cpu_count() or 1
    return dict(_device_limits.get(device, {"cube_core_num": cores, "vector_core_num": cores}))


def set_device_limit(device: int, cube_num: int = -1, vector_num: int = -1) -> None:
    """Keeps how many cores operators of a device may use; -1 leaves a number as it is."""
    _device_limits[device] = _limited(get_device_limit(device), cube_num, vector_num)


def _place(stream: Any) -> tuple[int, int]:
    return stream.device_index, stream.stream_id


def get_stream_limit(stream: Any) -> dict[str, int]:
    """The cores that operators of a stream were asked to use: those of its device unless limited."""
    return dict(_stream_limits.get(_place(stream)) or get_device_limit(stream.device_index))


def set_stream_limit(stream: Any, cube_num: int = -1, vector_num: int = -1) -> None:
    """Keeps how many cores operators of a stream may use; -1 leaves a number as it is."""
    _stream_limits[_place(stream)] = _limited(get_stream_limit(stream), cube_num, vector_num)


def reset_stream_limit(stream: Any) -> None:
    """Forgets the limit of the stream."""
    _stream_limits.pop(_place(stream), None)


__getattr__ = module_getattr(__name__, globals())
