# SPDX-License-Identifier: Apache-2.0
"""pyACL: memory, streams and events of AscendCL from Python."""

from __future__ import annotations

import importlib

import acl
import numpy
import pytest

import anynpu

NORMAL_ONLY = 2


@pytest.fixture(autouse=True)
def started():
    assert acl.init() == 0 and acl.rt.set_device(0) == 0
    yield
    assert acl.rt.reset_device(0) == 0 and acl.finalize() == 0


def test_a_missing_toolkit_is_an_import_error(monkeypatch, tmp_path):
    monkeypatch.setenv("ANYNPU_LIBRARY", str(tmp_path / "libanynpu.so"))
    monkeypatch.setattr(anynpu, "__path__", [str(tmp_path)])
    with pytest.raises(ImportError, match="acl: the toolkit folder is missing, looked for .*; reinstall anynpu"):
        importlib.reload(acl._library)


def test_bytes_to_the_device_and_back():
    data = bytes(range(64))
    device, status = acl.rt.malloc(64, NORMAL_ONLY)
    host, host_status = acl.rt.malloc_host(64)
    assert (status, host_status) == (0, 0)
    source = acl.util.bytes_to_ptr(data)
    assert acl.rt.memcpy(device, 64, source, 64, acl.ACL_MEMCPY_HOST_TO_DEVICE) == 0
    assert acl.rt.memcpy(host, 64, device, 64, acl.ACL_MEMCPY_DEVICE_TO_HOST) == 0
    assert acl.util.ptr_to_bytes(host, 64) == data
    assert acl.util.ptr_to_numpy(host, (8, 8), numpy.dtype(numpy.int8).num)[1].tolist() == list(range(8, 16))
    assert acl.rt.memset(device, 64, 7, 32) == 0
    assert acl.rt.free(device) == acl.rt.free_host(host) == 0


def test_arrays_are_read_where_they_lie():
    rows = numpy.arange(6, dtype=numpy.float32).reshape(2, 3)
    device, _ = acl.rt.malloc(rows.nbytes, NORMAL_ONLY)
    back = numpy.zeros_like(rows)
    assert acl.rt.memcpy(device, rows.nbytes, acl.util.numpy_to_ptr(rows), rows.nbytes, 1) == 0
    assert acl.rt.memcpy(acl.util.numpy_to_ptr(back), rows.nbytes, device, rows.nbytes, 2) == 0
    assert (back == rows).all() and acl.rt.free(device) == 0
    with pytest.raises(ValueError, match="array must be contiguous"):
        acl.util.numpy_to_ptr(rows.T)


def test_streams_events_and_contexts():
    context, status = acl.rt.create_context(0)
    assert status == 0 and acl.rt.get_context() == (context, 0)
    stream, _ = acl.rt.create_stream()
    begin, _ = acl.rt.create_event()
    end, _ = acl.rt.create_event()
    target, _ = acl.rt.malloc(8, NORMAL_ONLY)
    assert acl.rt.record_event(begin, stream) == 0
    assert acl.rt.memset_async(target, 8, 5, 8, stream) == 0
    assert acl.rt.record_event(end, stream) == 0 and acl.rt.stream_wait_event(stream, end) == 0
    assert acl.rt.synchronize_stream(stream) == 0
    assert acl.util.ptr_to_bytes(target, 8) == 8 * b"\5"
    milliseconds, status = acl.rt.event_elapsed_time(begin, end)
    assert status == 0 and milliseconds >= 0
    for call, handle in (("free", target), ("destroy_event", begin), ("destroy_event", end)):
        assert getattr(acl.rt, call)(handle) == 0
    assert acl.rt.destroy_stream(stream) == acl.rt.destroy_context(context) == 0


def test_what_the_runtime_says_of_itself():
    assert acl.get_soc_name() == "Ascend910B"
    assert acl.rt.get_device() == (0, 0) and acl.rt.get_device_count() == (1, 0)
    assert len(acl.rt.get_version()) == 4


def test_refusals():
    device, _ = acl.rt.malloc(8, NORMAL_ONLY)
    assert acl.rt.memcpy(device, 8, device, 9, 3) != 0
    assert "count is 9, more than the destination's 8" in acl.get_recent_err_msg()
    assert acl.rt.free(device) == 0
    assert acl.rt.set_device(9) != 0
    with pytest.raises(NotImplementedError, match=r"acl\.mdl is not implemented by anynpu"):
        _ = acl.mdl
    with pytest.raises(ImportError, match=r"acl\.op is not implemented by anynpu"):
        importlib.import_module("acl.op")
