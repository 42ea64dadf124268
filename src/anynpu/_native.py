# SPDX-License-Identifier: Apache-2.0
"""Loads the native library and calls its flat C ABI (``include/anynpu.h``) through ctypes."""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import struct
from collections.abc import Callable, Sequence
from itertools import starmap
from pathlib import Path

import torch

from anynpu import _openmp

ABI_VERSION = 6
MAX_DIMS = 8
ND = 2
FRACTAL_NZ = 29
ISA_TIERS = ("amx", "avx512bf16", "avx512vbmi", "avx512vnni", "avxvnni", "avx2", "neon", "portable")  # best first

DTYPE_CODES = {
    torch.float32: 0,
    torch.float16: 1,
    torch.int8: 2,
    torch.int32: 3,
    torch.uint8: 4,
    torch.int16: 6,
    torch.uint16: 7,
    torch.uint32: 8,
    torch.int64: 9,
    torch.uint64: 10,
    torch.float64: 11,
    torch.bool: 12,
    torch.bfloat16: 27,
}

_STATUS_ERRORS: dict[int, type[Exception]] = {
    1: ValueError,
    2: TypeError,
    3: ValueError,
    4: ValueError,
    5: NotImplementedError,
    6: MemoryError,
    7: RuntimeError,
}


class _Tensor(ctypes.Structure):
    """Mirror of ``anynpu_tensor``; only its size is used, the bytes are packed by ``_TENSOR``."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("dtype", ctypes.c_int32),
        ("format", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("nz_c0", ctypes.c_int32),
        ("shape", ctypes.c_int64 * MAX_DIMS),
        ("strides", ctypes.c_int64 * MAX_DIMS),
    ]


_TENSOR = struct.Struct("@P4i8q8q")
_ABSENT = bytes(_TENSOR.size)
_PADDING = (0,) * MAX_DIMS
_ADDRESS = struct.calcsize("@P")  # bytes, at the beginning of a tensor


def allocate_publicly(shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """A new tensor of the CPU, whatever the default device."""
    return torch.empty_strided(shape, strides, dtype=dtype, device="cpu")


try:
    from torch._C._dynamo.guards import _empty_strided_cpu as allocate  # takes a third of the time, but is private
except ImportError:
    allocate = allocate_publicly


_HUGE_PAGE = 2 << 20
_MAPPED_BYTES = 32 << 20  # from here on glibc maps every allocation anew and unmaps it in the end
_madvise = ctypes.CDLL(None).madvise
_madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def allocate_in_huge_pages(shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """As :func:`allocate`, for fresh memory: a fault for each of its small pages takes longer than to fill them.

    Only whole pages within the tensor are advised. A system without huge pages refuses, which changes nothing.
    """
    tensor = allocate(shape, strides, dtype)
    begin = -(-tensor.data_ptr() // _HUGE_PAGE) * _HUGE_PAGE
    end = (tensor.data_ptr() + tensor.nbytes) // _HUGE_PAGE * _HUGE_PAGE
    if begin < end:
        _madvise(begin, end - begin, mmap.MADV_HUGEPAGE)
    return tensor


def allocator(nbytes: int) -> Callable[[tuple[int, ...], tuple[int, ...], torch.dtype], torch.Tensor]:
    """What allocates a tensor of so many bytes, given shape, strides and dtype."""
    return allocate_in_huge_pages if nbytes >= _MAPPED_BYTES else allocate


def library_path() -> Path:
    """The native library: the file named by ``ANYNPU_LIBRARY``, else the one installed with the package."""
    if override := os.environ.get("ANYNPU_LIBRARY"):
        return Path(override)
    import anynpu

    candidates = [Path(folder) / "lib" / "libanynpu.so" for folder in anynpu.__path__]
    for candidate in candidates:
        if candidate.exists():
            return candidate
    raise ImportError(f"anynpu: the native library is missing, looked for {', '.join(map(str, candidates))}")


def toolkit_path() -> Path:
    """The toolkit folder beside the native library in use, or the one installed with the package."""
    import anynpu

    folders = [library_path().parent / "toolkit", *(Path(folder) / "toolkit" for folder in anynpu.__path__)]
    for folder in folders:
        if (folder / "lib64" / "libascendcl.so").exists():
            return folder
    looked_for = ", ".join(map(str, folders))
    raise FileNotFoundError(f"the toolkit folder is missing, looked for {looked_for}; reinstall anynpu")


def _load() -> ctypes.CDLL:
    path = library_path()
    _openmp.share()
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        raise ImportError(f"anynpu: the native library cannot be loaded: {error}") from None
    version = loaded.anynpu_abi_version()
    if version != ABI_VERSION:
        raise ImportError(f"anynpu: {path} has ABI version {version}, this package needs {ABI_VERSION}; reinstall")
    loaded.anynpu_last_error.restype = ctypes.c_char_p
    loaded.anynpu_isa.restype = ctypes.c_char_p
    loaded.anynpu_isa_refusal.restype = ctypes.c_char_p
    loaded.anynpu_isa_refusal.argtypes = [ctypes.c_char_p]
    loaded.anynpu_set_max_isa.argtypes = [ctypes.c_char_p]
    loaded.anynpu_sizeof.restype = ctypes.c_int64
    loaded.anynpu_sizeof.argtypes = [ctypes.c_char_p]
    _require_size(loaded, "tensor", ctypes.sizeof(_Tensor))
    return loaded


def _require_size(loaded: ctypes.CDLL, name: str, size: int) -> None:
    native = loaded.anynpu_sizeof(name.encode())
    if native != size:
        raise ImportError(f"anynpu: anynpu_{name} has {native} bytes in the library and {size} here; reinstall")


library = _load()


def raise_for_status(status: int) -> None:
    """Raises the exception that stands for a nonzero status, with the library's sentence."""
    if status:
        raise _STATUS_ERRORS.get(status, RuntimeError)(library.anynpu_last_error().decode())


def isa() -> str:
    """The instruction set tier in force, one of ``ISA_TIERS``."""
    return library.anynpu_isa().decode()


def isa_refusal(tier: str) -> str | None:
    """Why ``tier`` is not used, or None when this machine can use it."""
    reason = library.anynpu_isa_refusal(tier.encode())
    return None if reason is None else reason.decode()


def set_max_isa(tier: str | None) -> None:
    """Caps the tier for the whole process (None: no cap). Not for use while operators run."""
    raise_for_status(library.anynpu_set_max_isa(None if tier is None else tier.encode()))


def _pack(tensor: torch.Tensor, format: int, shape: Sequence[int], strides: Sequence[int], nz_c0: int) -> bytes:
    padding = _PADDING[len(shape) :]
    sizes = (*shape, *padding, *strides, *padding)
    return _TENSOR.pack(tensor.data_ptr(), DTYPE_CODES[tensor.dtype], format, len(shape), nz_c0, *sizes)


def describe(tensor: torch.Tensor) -> bytes:
    """``tensor`` as an ``anynpu_tensor``."""
    return _pack(tensor, ND, tensor.shape, tensor.stride(), 0)


def describe_nz(storage: torch.Tensor, shape: Sequence[int]) -> bytes:
    """The contiguous tensor of ``shape`` whose FRACTAL_NZ form is ``storage``, as an ``anynpu_tensor``."""
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    return _pack(storage, FRACTAL_NZ, shape, strides, storage.shape[-1])


class Call:
    """One function pair of the flat C ABI: ``anynpu_<name>`` with its argument struct.

    ``tensors`` is the number of leading ``anynpu_tensor`` members, ``scalars`` the struct-module format of the rest.
    """

    def __init__(self, name: str, tensors: int, scalars: str = "") -> None:
        self._scalars = struct.Struct("@" + scalars)
        self._function = getattr(library, f"anynpu_{name}")
        self._function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
        self._check = getattr(library, f"anynpu_{name}_check")
        self._check.argtypes = [ctypes.c_char_p, ctypes.POINTER(ctypes.c_size_t)]
        _require_size(library, f"{name}_args", tensors * _TENSOR.size + self._scalars.size)

    def _arguments(self, tensors: Sequence[torch.Tensor | None], scalars: tuple[int | float, ...]) -> bytes:
        views = [_ABSENT if tensor is None else describe(tensor) for tensor in tensors]
        return b"".join(views) + self._scalars.pack(*scalars)

    def __call__(self, *tensors: torch.Tensor | None, scalars: tuple[int | float, ...] = ()) -> None:
        self.run(self._arguments(tensors, scalars))

    def plan(
        self,
        inputs: Sequence[torch.Tensor | None],
        outputs: Sequence[tuple[Sequence[int], torch.dtype] | None],
        scalars: tuple[int | float, ...] = (),
    ) -> Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]:
        """What makes this call for any tensors laid out like ``inputs``, the first members of the struct.

        It takes those that are not None, allocates the outputs, which are given by shape and dtype, and returns them.
        It reads nothing of a tensor but the address.
        """
        made = [None if output is None else torch.empty(output[0], dtype=output[1]) for output in outputs]
        layouts = [(tuple(tensor.shape), tensor.stride(), tensor.dtype) for tensor in made if tensor is not None]
        members = (*inputs, *made)
        template = self._arguments(members, scalars)
        places = [i * _TENSOR.size for i, tensor in enumerate(members) if tensor is not None]
        ends = [*places[1:], len(template)]
        pieces = [template[: places[0]]]  # of the struct, with the addresses between them
        for place, end in zip(places, ends, strict=True):
            pieces += (0, template[place + _ADDRESS : end])
        pack = struct.Struct("@" + "P".join(f"{len(piece)}s" for piece in pieces[::2])).pack
        create = allocator(max((tensor.nbytes for tensor in made if tensor is not None), default=0))
        function, single, address = self._function, len(layouts) == 1, torch.Tensor.data_ptr

        def run(*present: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
            results = [*starmap(create, layouts)]
            members = pieces[:]  # a copy: other threads may be here too
            members[1::2] = map(address, (*present, *results))
            status = function(pack(*members), None, 0)
            if status:
                raise_for_status(status)
            return results[0] if single else tuple(results)

        return run

    def plan_of_contiguous(
        self,
        inputs: Sequence[torch.Tensor | None],
        outputs: Sequence[tuple[Sequence[int], torch.dtype] | None],
        scalars: tuple[int | float, ...] = (),
    ) -> Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]:
        """As :meth:`plan`, for a function that wants contiguous inputs: others are copied at each call."""
        dense = [None if tensor is None else tensor.contiguous() for tensor in inputs]
        run = self.plan(dense, outputs, scalars)
        if all(a is b for a, b in zip(dense, inputs, strict=True)):
            return run
        return lambda *present: run(*[tensor.contiguous() for tensor in present])

    def run(self, arguments: bytes) -> None:
        """Runs on a struct that the caller has put together."""
        status = self._function(arguments, None, 0)
        if status:
            raise_for_status(status)

    def required_bytes(self, *tensors: torch.Tensor | None, scalars: tuple[int | float, ...] = ()) -> int:
        """What the check function reports: workspace or output bytes, by operator."""
        size = ctypes.c_size_t(0)
        raise_for_status(self._check(self._arguments(tensors, scalars), ctypes.byref(size)))
        return size.value
