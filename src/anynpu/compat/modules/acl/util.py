# SPDX-License-Identifier: Apache-2.0
"""``acl.util``: addresses of Python's memory."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy

from anynpu.compat.errors import module_getattr

_KINDS = {
    kind.num: kind for kind in map(numpy.dtype, numpy.typecodes["AllInteger"] + numpy.typecodes["AllFloat"] + "?")
}


def bytes_to_ptr(data: bytes) -> int:
    """The address of ``data``, which must be kept as long as it is used."""
    return ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value


def ptr_to_bytes(ptr: int, size: int) -> bytes:
    """A copy of ``size`` bytes from the address ``ptr``."""
    return ctypes.string_at(ptr, size)


def numpy_to_ptr(array: numpy.ndarray) -> int:
    """The address of ``array``, which must be contiguous, and kept as long as it is used."""
    if not array.flags.c_contiguous:
        raise ValueError("numpy_to_ptr: array must be contiguous")
    return array.ctypes.data


def ptr_to_numpy(ptr: int, shape: Sequence[int], dtype: int) -> numpy.ndarray:
    """An array over the memory at ``ptr``; ``dtype`` is a number of numpy: 1 for int8, 11 for float32."""
    kind = _KINDS[dtype]
    size = int(numpy.prod(shape)) * kind.itemsize
    return numpy.frombuffer((ctypes.c_char * size).from_address(ptr), kind).reshape(tuple(shape))


__getattr__ = module_getattr(__name__, globals())
