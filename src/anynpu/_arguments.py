# SPDX-License-Identifier: Apache-2.0
"""The arguments of a call as one record: the ``Arguments`` that ``spec.py`` of an operator declares."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, get_type_hints

import torch


def takes(record: type[tuple]) -> Callable[[Callable], Callable]:
    """Makes a function of one ``record`` a function of its fields, by position or by name, with its defaults."""

    def decorated(function: Callable) -> Callable:
        @functools.wraps(function)
        def call(*args: Any, **keywords: Any) -> Any:
            try:
                arguments = record(*args, **keywords)
            except TypeError as error:
                raise TypeError(str(error).replace(f"{record.__name__}.__new__", function.__name__)) from None
            return function(arguments)

        returned = get_type_hints(function).get("return", inspect.Signature.empty)
        call.__signature__ = inspect.Signature(_parameters(record), return_annotation=returned)
        return call

    return decorated


def tensors_of(arguments: tuple) -> tuple[torch.Tensor | None, ...]:
    """The tensors of a call in their order, None where one is absent."""
    return tuple(getattr(arguments, name) for name in _tensors(type(arguments)))


def with_tensors(arguments: tuple) -> Callable[..., tuple]:
    """What makes the same call of other tensors, those that are present; it keeps none of these."""
    names = [name for name in _tensors(type(arguments)) if getattr(arguments, name) is not None]
    rest = arguments._replace(**dict.fromkeys(names))
    return lambda *tensors: rest._replace(**dict(zip(names, tensors, strict=True)))


@functools.cache
def _parameters(record: type[tuple]) -> list[inspect.Parameter]:
    kinds = get_type_hints(record)
    parameters = inspect.signature(record).parameters.values()
    return [parameter.replace(annotation=kinds[parameter.name]) for parameter in parameters]


@functools.cache
def _tensors(record: type[tuple]) -> list[str]:
    return [name for name, kind in get_type_hints(record).items() if kind in (torch.Tensor, torch.Tensor | None)]
