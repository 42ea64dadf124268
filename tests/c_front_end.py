# SPDX-License-Identifier: Apache-2.0
"""Drives libopapi.so through ctypes: device memory, tensors that mirror torch tensors, and the two stages of a call."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from anynpu import _native, nd_to_nz
from anynpu._native import toolkit_path

ND, NZ = 2, 29
INT4 = 29
HUGE_FIRST = 0
HOST_TO_DEVICE, DEVICE_TO_HOST = 1, 2
GRANULE = 2 << 20  # what HUGE_FIRST rounds up to
POISON = 0xA5


def _load() -> tuple[ctypes.CDLL, ctypes.CDLL, ctypes.CDLL]:
    folder = toolkit_path() / "lib64"
    runtime, base, operators = (
        ctypes.CDLL(str(folder / f"lib{name}.so")) for name in ("ascendcl", "nnopbase", "opapi")
    )
    runtime.aclGetRecentErrMsg.restype = ctypes.c_char_p
    base.aclCreateTensor.restype = ctypes.c_void_p
    base.aclCreateIntArray.restype = ctypes.c_void_p
    base.aclCreateTensorList.restype = ctypes.c_void_p
    return runtime, base, operators


runtime, base, operators = _load()
runtime.aclInit(None)
runtime.aclrtSetDevice(0)


def require(status: int) -> None:
    assert status == 0, f"{status}: {recent_error()}"


def recent_error() -> str:
    return (runtime.aclGetRecentErrMsg() or b"").decode()


@dataclass
class Outcome:
    """The first status that is not 0 in the order first stage, second stage, synchronisation; and its sentence."""

    status: int
    sentence: str


@dataclass
class DeviceTensor:
    """An aclTensor with device memory of its own, filled from a torch tensor or poisoned."""

    handle: int
    address: int
    nbytes: int
    before: bytes = field(repr=False)

    def read(self) -> bytes:
        """All of the allocation, with the part that rounding up has added."""
        size = len(self.before)
        contents = (ctypes.c_char * size)()
        require(
            runtime.aclrtMemcpy(
                contents, ctypes.c_uint64(size), ctypes.c_void_p(self.address), ctypes.c_uint64(size), DEVICE_TO_HOST
            )
        )
        return contents.raw

    def is_untouched(self) -> bool:
        return self.read() == self.before

    def tensor(self, shape: list[int], dtype: torch.dtype) -> torch.Tensor:
        """The contents, after checking that nothing behind them was written."""
        contents = self.read()
        assert contents[self.nbytes :] == self.before[self.nbytes :], "written behind the end of the tensor"
        if self.nbytes == 0:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(bytearray(contents[: self.nbytes]), dtype=dtype).reshape(shape)


class Session:
    """Makes tensors for one call and destroys them at the end."""

    def __init__(self) -> None:
        self._tensors: list[DeviceTensor] = []
        self._arrays: list[int] = []
        self._lists: list[int] = []
        self._listed: set[int] = set()  # tensors that their list destroys

    def close(self) -> None:
        for handle in self._lists:
            require(base.aclDestroyTensorList(ctypes.c_void_p(handle)))
        for tensor in self._tensors:
            if tensor.handle not in self._listed:
                require(base.aclDestroyTensor(ctypes.c_void_p(tensor.handle)))
            require(runtime.aclrtFree(ctypes.c_void_p(tensor.address)))
        for array in self._arrays:
            require(base.aclDestroyIntArray(ctypes.c_void_p(array)))

    def tensor(self, tensor: torch.Tensor | None, nz: bool = False, code: int | None = None) -> int | None:
        """The handle of a copy with the same strides, or in FRACTAL_NZ; None stays None."""
        if tensor is None:
            return None
        if nz:
            return self._nz(tensor)
        dtype = _native.DTYPE_CODES.get(tensor.dtype, 1000) if code is None else code
        shape = list(tensor.shape)
        if code == INT4:
            shape[-1] *= 8
        stored = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage()) if tensor.numel() else tensor
        strides = contiguous_strides(shape) if code == INT4 else tensor.stride()
        raw = stored.contiguous().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        return self._make(
            shape, list(strides), tensor.storage_offset(), dtype, ND, [max(1, stored.numel())], raw
        ).handle

    def _nz(self, tensor: torch.Tensor) -> int:
        swapped = not tensor.is_contiguous() and tensor.mT.is_contiguous()
        storage = nd_to_nz(tensor.mT if swapped else tensor)
        dtype = _native.DTYPE_CODES[tensor.dtype]
        raw = storage.contiguous().view(torch.uint8).numpy().tobytes()
        return self._make(list(tensor.shape), list(tensor.stride()), 0, dtype, NZ, list(storage.shape), raw).handle

    def output(self, shape: list[int], dtype: torch.dtype, code: int | None = None, nz: bool = False) -> DeviceTensor:
        """A poisoned tensor."""
        dtype_code = _native.DTYPE_CODES[dtype] if code is None else code
        stored = nd_to_nz(torch.zeros(shape, dtype=dtype)) if nz else torch.zeros(shape, dtype=dtype)
        view = [*shape[:-1], shape[-1] * 8] if code == INT4 else shape
        raw = bytes([POISON]) * (stored.numel() * stored.element_size())
        storage = list(stored.shape) if nz else [max(1, stored.numel())]
        return self._make(view, contiguous_strides(view), 0, dtype_code, NZ if nz else ND, storage, raw)

    def find(self, handle: int) -> DeviceTensor:
        return next(tensor for tensor in self._tensors if tensor.handle == handle)

    def ints(self, values: list[int]) -> int:
        array = base.aclCreateIntArray((ctypes.c_int64 * len(values))(*values), ctypes.c_uint64(len(values)))
        self._arrays.append(array)
        return array

    def tensors(self, handles: list[int]) -> int:
        """A list of tensors."""
        made = base.aclCreateTensorList((ctypes.c_void_p * len(handles))(*handles), ctypes.c_uint64(len(handles)))
        self._lists.append(made)
        self._listed.update(handles)
        return made

    def _make(
        self, shape: list[int], strides: list[int], offset: int, dtype: int, layout: int, storage: list[int], raw: bytes
    ) -> DeviceTensor:
        size = max(1, -(-len(raw) // GRANULE)) * GRANULE
        before = raw + bytes([POISON]) * (size - len(raw))
        address = ctypes.c_void_p()
        require(runtime.aclrtMalloc(ctypes.byref(address), ctypes.c_uint64(max(1, len(raw))), HUGE_FIRST))
        require(runtime.aclrtMemcpy(address, ctypes.c_uint64(size), before, ctypes.c_uint64(size), HOST_TO_DEVICE))
        handle = base.aclCreateTensor(
            (ctypes.c_int64 * len(shape))(*shape),
            ctypes.c_uint64(len(shape)),
            ctypes.c_int32(dtype),
            (ctypes.c_int64 * len(strides))(*strides),
            ctypes.c_int64(offset),
            ctypes.c_int32(layout),
            (ctypes.c_int64 * len(storage))(*storage),
            ctypes.c_uint64(len(storage)),
            address,
        )
        if handle is None:
            runtime.aclrtFree(address)
            raise ValueError(recent_error())
        made = DeviceTensor(handle, address.value, len(raw), before)
        self._tensors.append(made)
        return made


@contextmanager
def session() -> Iterator[Session]:
    opened = Session()
    try:
        yield opened
    finally:
        opened.close()


def contiguous_strides(shape: list[int]) -> list[int]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.insert(0, step)
        step *= max(1, size)
    return strides


def call(function: str, *arguments: object) -> Outcome:
    """Both stages and a synchronisation. Tensors are handles (None: a null pointer); attributes are ctypes values."""
    workspace_size, executor = ctypes.c_uint64(), ctypes.c_void_p()
    first = getattr(operators, f"{function}GetWorkspaceSize")
    second = getattr(operators, function)
    recent_error()
    handles = [ctypes.c_void_p(value) if value is None or isinstance(value, int) else value for value in arguments]
    status = first(*handles, ctypes.byref(workspace_size), ctypes.byref(executor))
    if status == 0:
        workspace = ctypes.c_void_p()
        if workspace_size.value:
            require(runtime.aclrtMalloc(ctypes.byref(workspace), workspace_size, HUGE_FIRST))
        status = second(workspace, workspace_size, executor, None)
        status = status or runtime.aclrtSynchronizeStream(None)
        if workspace_size.value:
            require(runtime.aclrtFree(workspace))
    return Outcome(status, recent_error())
