# SPDX-License-Identifier: Apache-2.0
"""Errors of the shim: the house sentence in the vendor's shape, and names that are not implemented."""

from __future__ import annotations

import difflib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from types import FunctionType, ModuleType
from typing import Any

PARAM_NULLPTR = 161001
PARAM_INVALID = 161002
RUNTIME_ERROR = 361001

_CODE_NAMES = {
    PARAM_NULLPTR: "ACLNN_ERR_PARAM_NULLPTR",
    PARAM_INVALID: "ACLNN_ERR_PARAM_INVALID",
    RUNTIME_ERROR: "ACLNN_ERR_RUNTIME_ERROR",
}


class NpuTypeError(TypeError, RuntimeError):
    """A wrong dtype; a RuntimeError too, because that is what torch_npu raises."""


class NpuValueError(ValueError, RuntimeError):
    """A wrong shape or value; a RuntimeError too, because that is what torch_npu raises."""


class MissingNameError(AttributeError, NotImplementedError):
    """A published name that anynpu does not implement."""


def vendor_error(error: Exception, name: str, aclnn: str, code: int) -> Exception:
    """``error`` with operator, aclnn function and status code added, in a class that users of torch_npu catch."""
    sentence = str(error).removeprefix(f"{name}: ")  # the operators of anynpu that it calls have names of their own
    message = f"{name}: {sentence}\n[ERROR] {name}: call {aclnn} failed, error code is {code} ({_CODE_NAMES[code]})."
    if isinstance(error, TypeError):
        return NpuTypeError(message)
    if isinstance(error, ValueError):
        return NpuValueError(message)
    return NotImplementedError(message)


def public_names(module: str, names: Mapping[str, Any]) -> list[str]:
    """What a module of the shim offers: its own names, without what it imported to work with."""
    if "__all__" in names:
        return sorted(names["__all__"])
    return sorted(name for name, value in names.items() if not name.startswith("_") and _is_own(module, value))


def available_names(module: str, names: Mapping[str, Any]) -> list[str]:
    """``public_names`` and the submodules that can be imported."""
    submodules = [info.name for info in pkgutil.iter_modules(names.get("__path__", ()))]
    return sorted({*public_names(module, names), *(name for name in submodules if not name.startswith("_"))})


def _is_own(module: str, value: Any) -> bool:
    if isinstance(value, ModuleType):
        return value.__name__.startswith(f"{module}.")
    if isinstance(value, type | FunctionType):
        return value.__module__.startswith(("torch", "anynpu")) and value.__module__ != __name__
    return type(value).__module__ not in ("__future__", "typing")


def missing_text(module: str, name: str, available: Sequence[str]) -> str:
    """What to say of ``module.name``, which is not implemented."""
    close = difflib.get_close_matches(name, available, n=3)
    matches = f" Close matches: {', '.join(close)}." if close else ""
    there = ", ".join(available) or "nothing"
    return f"{module}.{name} is not implemented by anynpu.{matches} Implemented in {module}: {there}."


def module_getattr(module: str, names: Mapping[str, Any]) -> Callable[[str], Any]:
    """A module ``__getattr__`` that says what is missing and what is there; ``names`` are the module's globals."""

    def __getattr__(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        raise MissingNameError(missing_text(module, name, available_names(module, names)))

    return __getattr__


def not_implemented(qualified: str) -> Callable[..., Any]:
    """A function that can be imported but not called."""

    def function(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{qualified} is not implemented by anynpu; docs/torch_npu.md lists what is")

    function.__name__ = function.__qualname__ = qualified.rpartition(".")[2]
    return function
