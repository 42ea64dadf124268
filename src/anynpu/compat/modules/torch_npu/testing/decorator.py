# SPDX-License-Identifier: Apache-2.0
"""``torch_npu.testing.decorator``: one test method for each dtype and format."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from anynpu.compat.errors import module_getattr


class _Values:
    _keyword: str

    def __init__(self, *values: Any) -> None:
        self._values = values

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        function.__dict__.setdefault("_anynpu_values", {})[self._keyword] = self._values
        return function


class Dtypes(_Values):
    """The dtypes that a test method takes, one after another, as ``dtype``."""

    _keyword = "dtype"


class Formats(_Values):
    """The formats that a test method takes, one after another, as ``npu_format``."""

    _keyword = "npu_format"


def instantiate_tests(cls: type) -> type:
    """A class decorator: replaces each method marked with ``Dtypes`` or ``Formats`` by one for each combination."""
    for name, function in list(vars(cls).items()):
        if inspect.isfunction(function) and hasattr(function, "_anynpu_values"):
            delattr(cls, name)
            for suffix, arguments in _combinations(function._anynpu_values):
                setattr(cls, f"{name}_{suffix}", functools.partialmethod(function, **arguments))
    return cls


def _combinations(values: dict[str, tuple]) -> list[tuple[str, dict[str, Any]]]:
    combinations: list[tuple[str, dict[str, Any]]] = [("", {})]
    for keyword, choices in values.items():
        combinations = [
            (f"{suffix}_{choice}".replace("torch.", "").strip("_"), {**arguments, keyword: choice})
            for suffix, arguments in combinations
            for choice in choices
        ]
    return combinations


def graph_mode(function: Callable[..., Any]) -> Callable[..., Any]:
    """Runs the test as it is: the vendor's former lazy mode has no counterpart."""
    return function


__getattr__ = module_getattr(__name__, globals())
