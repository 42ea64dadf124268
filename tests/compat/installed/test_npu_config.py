# SPDX-License-Identifier: Apache-2.0
"""Settings of torch_npu.npu that are kept, and what it says of overflow."""

from __future__ import annotations

import os

import pytest
import torch
import torch_npu


def test_settings_are_kept():
    for name, value in (("mm_bmm_format_nd", False), ("sync_debug_mode", 2), ("task_queue_enable", 2)):
        setting, before = getattr(torch.npu, f"set_{name}"), getattr(torch.npu, f"get_{name}")()
        setting(value)
        assert getattr(torch_npu.npu, f"get_{name}")() == value != before
        setting(before)
    torch.npu.set_sync_debug_mode("warn")
    assert torch.npu.get_sync_debug_mode() == 1
    torch.npu.set_sync_debug_mode("default")
    torch.npu.use_compatible_impl(True)
    assert torch.npu.are_compatible_impl_enabled()
    torch.npu.use_compatible_impl(False)
    torch.npu.set_op_timeout_ms(1000)
    with pytest.raises(RuntimeError, match="set_sync_debug_mode: debug_mode must be in .* or 0 to 2, got 'all'"):
        torch.npu.set_sync_debug_mode("all")
    with pytest.raises(RuntimeError, match="set_task_queue_enable: mode must be 0, 1 or 2, got 3"):
        torch.npu.set_task_queue_enable(3)


def test_limits_of_cores():
    from torch_npu.npu import npu_config

    cores = {"cube_core_num": os.cpu_count(), "vector_core_num": os.cpu_count()}
    stream = torch.npu.current_stream()
    assert torch.npu.get_device_limit(0) == torch.npu.get_stream_limit(stream) == cores
    torch.npu.set_stream_limit(stream, 3)
    assert torch.npu.get_stream_limit(torch.npu.current_stream()) == cores | {"cube_core_num": 3}
    assert torch.npu.get_stream_limit(torch.npu.Stream()) == cores
    torch.npu.reset_stream_limit(stream)
    torch.npu.set_device_limit(0, vector_num=5)
    assert torch.npu.get_stream_limit(stream) == cores | {"vector_core_num": 5}
    npu_config._device_limits.clear()
    with pytest.raises(RuntimeError, match="device index must be below the device count"):
        torch.npu.get_device_limit(100)


def test_overflow():
    from torch_npu.npu.utils import npu_check_overflow

    x = torch.full((3,), 6e4, dtype=torch.float16, device="npu")
    assert not npu_check_overflow(x) and npu_check_overflow(x + x) and npu_check_overflow(float("nan"))
    with pytest.raises(RuntimeError, match="grad must be a float or a tensor, got int"):
        npu_check_overflow(1)
    with pytest.raises(RuntimeError, match="use npu_check_overflow"):
        torch.npu.get_npu_overflow_flag()
    with pytest.warns(UserWarning, match="no flag is set"):
        torch.npu.clear_npu_overflow_flag()


def test_figures_of_memory():
    assert torch.npu.memory_stats_as_nested_dict()["allocated_bytes"]["all"]["current"] > 0
    assert torch.npu.memory.get_allocator_backend() == "native"
    torch.npu.set_per_process_memory_fraction(0.5)
    assert torch.npu.get_per_process_memory_fraction() == 0.5
    torch.npu.set_per_process_memory_fraction(1.0)


def test_legacy_storages():
    assert torch.npu.FloatStorage([1, 2]).tolist() == [1.0, 2.0]
