# SPDX-License-Identifier: Apache-2.0
"""Streams and events of npu over the CPU, which are torch's too."""

from __future__ import annotations

import threading

import pytest
import torch
import torch_npu

MADE = {
    "torch.npu": lambda: torch.npu.Stream(),
    "torch.npu, of a device": lambda: torch.npu.Stream("npu:0", priority=-1),
    "torch": lambda: torch.Stream(),
    "torch, of npu": lambda: torch.Stream("npu"),
    "torch, of an index": lambda: torch.Stream(0),
    "external": lambda: torch.npu.ExternalStream(0x1234),
    "sync launch": lambda: torch.npu.SyncLaunchStream(),
}


@pytest.mark.parametrize("name", MADE)
def test_streams_have_names_and_can_be_compared(name):
    stream, other = MADE[name](), torch.npu.Stream()
    assert isinstance(stream, torch.Stream) and isinstance(stream, torch.npu.Stream)
    assert stream.device == torch.device("npu:0") and stream.device_index == 0
    known = {key: getattr(stream, key) for key in ("stream_id", "device_index", "device_type")}
    for same in (torch.Stream(**known), torch.npu.Stream(**known)):
        assert same == stream and hash(same) == hash(stream)
    assert stream != other and len({stream, other, torch.npu.Stream(**known)}) == 2
    assert stream.npu_stream == stream.native_handle == stream._as_parameter_.value
    assert f"device=npu:0 npu_stream={stream.npu_stream:#x}>" in repr(stream)


def test_the_handle_of_the_default_stream_is_null_as_in_c():
    assert torch.npu.default_stream().npu_stream == 0 and torch.npu.default_stream() != torch.npu.Stream()
    assert torch.npu.ExternalStream(0x1234).npu_stream == 0x1234


@pytest.mark.parametrize("name", MADE)
def test_streams_and_events_wait_for_each_other(name):
    stream = MADE[name]()
    for other in (torch.npu.Stream(), torch.Stream("npu"), torch.npu.current_stream()):
        for event in (torch.npu.Event(), torch.Event(), torch.Event("npu", enable_timing=True), None):
            recorded = other.record_event(event)
            assert recorded is event or event is None
            stream.wait_event(recorded)
            recorded.wait(stream)
            recorded.synchronize()
            assert recorded.query() and recorded.device == other.device
        stream.wait_stream(other)
    stream.synchronize()
    assert stream.query() and not stream.is_capturing()
    torch.ones(2, device="npu").record_stream(stream)


@pytest.mark.parametrize("name", MADE)
def test_the_current_stream(name):
    stream, outer = MADE[name](), torch.npu.current_stream()
    with stream as entered:
        assert entered is stream is torch.npu.current_stream() is torch.accelerator.current_stream()
        with torch.npu.stream(outer), torch.npu.stream(None), stream, stream:
            assert torch.npu.current_stream() is stream
        seen = []
        thread = threading.Thread(target=lambda: seen.append(torch.npu.current_stream()))
        thread.start()
        thread.join()
        assert seen == [torch.npu.default_stream()]
    assert torch.npu.current_stream() is outer is torch.npu.default_stream() is torch.accelerator.current_stream(0)
    torch.accelerator.set_stream(stream)
    assert torch.npu.current_stream("npu:0") is stream
    torch.npu.set_stream(outer)


def test_each_device_has_a_current_stream(monkeypatch):
    monkeypatch.setenv("ANYNPU_DEVICE_COUNT", "2")
    first, second = torch.npu.Stream(0), torch.npu.Stream("npu:1")
    assert (first.device_index, second.device_index) == (0, 1)
    with torch.npu.stream(first), torch.npu.stream(second):
        assert torch.npu.current_device() == 1 and torch.npu.Stream().device_index == 1
        assert torch.npu.current_stream() is second and torch.npu.current_stream(0) is first
    assert torch.npu.current_device() == 0
    assert torch.npu.current_stream(1) is torch.npu.default_stream(1) != torch.npu.default_stream(0)


def test_events_measure_time():
    start, end = torch.npu.Event(enable_timing=True), torch.Event(enable_timing=True)
    assert repr(start) == "<torch_npu.npu.Event uninitialized>" and start.device is None and start.query()
    with pytest.raises(RuntimeError, match="must be recorded first"):
        start.elapsed_time(end)
    with pytest.raises(RuntimeError, match="must be recorded first"):
        start.recorded_time()
    start.record()
    end.record(torch.npu.Stream())
    assert start.elapsed_time(end) == (end.recorded_time() - start.recorded_time()) / 1e6 > 0
    assert isinstance(start, torch.Event) and repr(start) == f"<torch_npu.npu.Event {start.npu_event:#x}>"
    with pytest.raises(RuntimeError, match="enable_timing=True"):
        start.elapsed_time(torch.npu.Event())


def test_those_of_other_devices_stay_torchs():
    stream, event = torch.Stream("cpu"), torch.Event("cpu")
    assert isinstance(stream, torch.Stream) and not isinstance(stream, torch_npu.npu.Stream)
    assert isinstance(event, torch.Event) and not isinstance(event, torch_npu.npu.Event)
    assert stream.device == torch.device("cpu") and issubclass(torch.npu.Stream, torch.Stream)


def test_a_capture_is_on_its_stream():
    stream, graph = torch.npu.Stream(), torch.npu.NPUGraph()
    with torch.npu.graph(graph, stream=stream):
        assert stream.is_capturing() and not torch.npu.default_stream().is_capturing()


def events(x, stream):
    event = stream.record_event()
    with torch.npu.stream(stream):
        x = x + 1
        event.synchronize()
    torch.npu.current_stream().wait_stream(stream)
    return x * 2


def test_compiled():
    torch.compiler.reset()
    x, stream = torch.ones(2), torch.npu.Stream()
    assert torch.equal(torch.compile(events, backend="aot_eager")(x, stream), events(x, stream))
