# SPDX-License-Identifier: Apache-2.0
"""Streams and events of ``torch.npu`` when npu stands for the CPU: there to be made, compared and waited for.

Work is done when a call returns, so that nothing has to wait. Streams and events are those of torch too, as those of
``torch.cuda`` are: both kinds can be given to each other's methods.
"""

from __future__ import annotations

import functools
import itertools
import threading
import time
from ctypes import c_void_p
from typing import Any

import torch

from anynpu.compat.device import names_npu, real_device
from torch_npu.npu._host import current_device, set_device

_DEVICE_TYPE = int(torch._C._autograd.DeviceType.PrivateUse1)
_current = threading.local()
_stream_ids, _event_ids = itertools.count(1), itertools.count(1)


def _index(device: Any) -> int:
    """The index of ``device``; the current one of None, a negative number, and npu without an index."""
    if device is None or (isinstance(device, int) and device < 0):
        return current_device()
    real_device(device)
    index = device if isinstance(device, int) else torch.device(device).index
    return current_device() if index is None else index


class Stream(torch._C.Stream):
    """An order of work on ``device``, None for the current one. Lower numbers of ``priority`` go first."""

    def __new__(cls, device: Any = None, priority: int = 0, **known: Any) -> Stream:
        """``known``: ``stream_id``, ``device_index`` and ``device_type`` of a stream that exists."""
        place = {"stream_id": next(_stream_ids), "device_index": _index(device), "device_type": _DEVICE_TYPE}
        made = super().__new__(cls, **{name: known.get(name, value) for name, value in place.items()})
        made.priority = priority
        return made

    @classmethod
    def priority_range(cls) -> tuple[int, int]:
        """The least and the greatest priority."""
        return 0, -1

    @property
    def npu_stream(self) -> int:
        """The handle of C programs: 0, the default stream, for that one alone."""
        return self.stream_id

    native_handle = npu_stream

    @property
    def _as_parameter_(self) -> c_void_p:
        return c_void_p(self.npu_stream)

    def __repr__(self) -> str:
        return f"<torch_npu.npu.{type(self).__name__} device={self.device} npu_stream={self.npu_stream:#x}>"

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def wait_event(self, event: torch.Event) -> None:
        """Nothing to wait for."""
        event.wait(self)

    def wait_stream(self, stream: torch.Stream) -> None:
        """Nothing to wait for."""

    def record_event(self, event: torch.Event | None = None) -> torch.Event:
        event = Event() if event is None else event
        event.record(self)
        return event

    def is_capturing(self) -> bool:
        """Whether a graph is captured on this stream."""
        return torch.npu.is_current_stream_capturing() and self == current_stream(self.device)

    def set_data_preprocess_stream(self, is_data_preprocess_stream: bool = False) -> None:
        """A hint, which has no effect."""

    def __enter__(self) -> Stream:
        outer = _current.__dict__.setdefault("outer", [])
        outer.append(StreamContext(self))
        outer[-1].__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        _current.outer.pop().__exit__()


class SyncLaunchStream(Stream):
    """A stream whose calls do not pass through a queue of the host; none does here."""


class ExternalStream(Stream):
    """A stream that C code made, by its handle."""

    def __new__(cls, stream_ptr: int, device: Any = None, **known: Any) -> ExternalStream:
        return super().__new__(cls, device, stream_id=stream_ptr, **known)


class Event(torch._C.Event):
    """A point in time."""

    def __new__(cls, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False, **known: Any):
        """``known``: options of events in graphs, which have no effect."""
        made = super().__new__(cls, "cpu")  # a torch without Python device guards has no events of npu
        made._enable_timing = enable_timing
        made._recorded_ns: int | None = None
        made._device: torch.device | None = None
        made.npu_event = 0
        return made

    @property
    def device(self) -> torch.device | None:
        """The device of the stream that recorded it."""
        return self._device

    @property
    def _as_parameter_(self) -> c_void_p:
        return c_void_p(self.npu_event)

    def __repr__(self) -> str:
        return f"<torch_npu.npu.Event {self.npu_event:#x}>" if self.npu_event else "<torch_npu.npu.Event uninitialized>"

    def record(self, stream: torch.Stream | None = None) -> None:
        self._device = (current_stream() if stream is None else stream).device
        self._recorded_ns = time.perf_counter_ns()
        self.npu_event = self.npu_event or next(_event_ids)

    def wait(self, stream: torch.Stream | None = None) -> None:
        """Nothing to wait for."""

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def elapsed_time(self, end_event: Event) -> float:
        """Milliseconds from this event to ``end_event``."""
        for event in (self, end_event):
            if not event._enable_timing:
                raise RuntimeError("Event.elapsed_time: both events need enable_timing=True")
            if event._recorded_ns is None:
                raise RuntimeError("Event.elapsed_time: both events must be recorded first")
        return (end_event._recorded_ns - self._recorded_ns) / 1e6

    def recorded_time(self) -> int:
        """When it was recorded, in nanoseconds of a clock of this process."""
        if self._recorded_ns is None:
            raise RuntimeError("Event.recorded_time: the event must be recorded first")
        return self._recorded_ns


@functools.cache
def _default_stream(index: int) -> Stream:
    return Stream(stream_id=0, device_index=index)


def default_stream(device: Any = None) -> Stream:
    return _default_stream(_index(device))


def _current_streams() -> dict[int, torch.Stream]:
    return _current.__dict__.setdefault("streams", {})


def current_stream(device: Any = None) -> torch.Stream:
    index = _index(device)
    return _current_streams().get(index) or _default_stream(index)


def set_stream(stream: torch.Stream | None) -> None:
    """Makes ``stream`` the current one of its device, and this the current device."""
    if stream is not None:
        set_device(stream.device)
        _current_streams()[stream.device_index] = stream


class StreamContext:
    """Makes ``stream`` the current one within the block, and its device the current one."""

    def __init__(self, stream: torch.Stream | None) -> None:
        self.stream = stream

    def __enter__(self) -> None:
        if self.stream is not None:
            self._outer = current_stream(self.stream.device), current_stream()
            set_stream(self.stream)

    def __exit__(self, *error: Any) -> None:
        if self.stream is not None:
            for outer in self._outer:
                set_stream(outer)


def stream(stream: torch.Stream | None) -> StreamContext:
    """Makes ``stream`` the current one within the block."""
    return StreamContext(stream)


class _AlsoOfTorch(type):
    """Classes that make streams and events of npu here, and torch's for other devices, and take both for theirs."""

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, cls.__base__)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, cls.__base__)


def _is_npu(device: Any) -> bool:
    return device is None or isinstance(device, int) or names_npu(device)


class _TorchStream(torch._C.Stream, metaclass=_AlsoOfTorch):
    def __new__(cls, device: Any = None, **options: Any) -> torch.Stream:
        ours = options["device_type"] == _DEVICE_TYPE if "device_type" in options else _is_npu(device)
        if ours:
            return Stream(device, **options)
        return cls.__base__(*(() if device is None else (device,)), **options)


class _TorchEvent(torch._C.Event, metaclass=_AlsoOfTorch):
    def __new__(cls, device: Any = None, **options: Any) -> torch.Event:
        return Event(**options) if _is_npu(device) else cls.__base__(device, **options)


def provide() -> None:
    """Lets ``torch.Stream`` and ``torch.Event``, whose own cannot say that npu is done, make those of npu."""
    for made, name in ((_TorchStream, "Stream"), (_TorchEvent, "Event")):
        made.__module__, made.__name__, made.__qualname__ = "torch", name, name
        setattr(torch, name, made)
        setattr(torch._C, name, made)  # for what torch compiles
