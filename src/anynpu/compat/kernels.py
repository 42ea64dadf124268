# SPDX-License-Identifier: Apache-2.0
"""Kernels that programs register for npu, by ``torch.library``: they serve the real device, where the tensors are."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from anynpu.compat.device import target

_served: dict[tuple[str, str], torch.library.Library] = {}  # by operator and dispatch key of the real device


def _qualified_name(library: torch.library.Library, operator: str | torch._ops.OpOverload) -> str:
    name = operator if isinstance(operator, str) else operator.name()
    return name if "::" in name else f"{library.ns}::{name}"


def _forget(name: str, key: str) -> None:
    """Makes room for a kernel that the program registers: it may have one for each device."""
    if library := _served.pop((name, key), None):
        library._destroy()


def _serve(name: str, key: str, kernel: Callable[..., Any], options: dict[str, Any]) -> None:
    """Registers ``kernel`` for the real device unless the operator has one there, as those of torch have."""
    _forget(name, key)
    if torch._C._dispatch_has_kernel_for_dispatch_key(name, key):
        return
    library = _served[name, key] = torch.library.Library(name.partition("::")[0], "IMPL")
    _register(library, name, kernel, key, **options)


_register = torch.library.Library.impl


@functools.wraps(_register)
def _impl(
    self: torch.library.Library,
    op_name: str | torch._ops.OpOverload,
    fn: Callable[..., Any],
    dispatch_key: str = "",
    **options: Any,
) -> None:
    name, key = _qualified_name(self, op_name), dispatch_key or self.dispatch_key
    real = key.replace("PrivateUse1", target().type.upper())
    if real == key:
        _forget(name, key)
    _register(self, op_name, fn, dispatch_key, **options)
    if real != key:
        _serve(name, real, fn, options)


def provide() -> None:
    """Lets kernels for npu serve the real device too. It cannot be undone."""
    torch.library.Library.impl = _impl
