# SPDX-License-Identifier: Apache-2.0
"""Calls of AscendCL's C functions in the toolkit's library."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

from anynpu import _native

try:
    _folder = _native.toolkit_path()
except FileNotFoundError as error:
    raise ImportError(f"acl: {error}") from None

library = ctypes.CDLL(str(_folder / "lib64" / "libascendcl.so"))
library.aclrtGetSocName.restype = ctypes.c_char_p
library.aclGetRecentErrMsg.restype = ctypes.c_char_p


def function(name: str, arguments: Sequence[type] = (), results: Sequence[type] = ()) -> Callable[..., Any]:
    """The C function ``name``, which writes ``results`` through pointers that come before its other ``arguments``."""
    call = getattr(library, name)
    call.argtypes = [*map(ctypes.POINTER, results), *arguments]

    def with_results(*values: Any) -> tuple[Any, ...]:
        written = [result() for result in results]
        status = call(*map(ctypes.byref, written), *values)
        return (*((each.value or 0) for each in written), status)

    return with_results if results else call
