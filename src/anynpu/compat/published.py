# SPDX-License-Identifier: Apache-2.0
"""What all published operators share: registration, the vendor's errors, and arguments that name dtypes.

The functions of the modules ``*_operators`` have published names, argument orders and error texts, and no arithmetic.
Each is a function of ``torch_npu`` and an operator of ``torch.ops.npu``, which decomposes to ``torch.ops.anynpu`` while
a graph is captured.
"""

from __future__ import annotations

import functools
import inspect
import numbers
import typing
from collections.abc import Callable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any

import torch

from anynpu.compat.errors import PARAM_INVALID, PARAM_NULLPTR, vendor_error

_library = torch.library.Library("npu", "DEF")

INT4 = 285  # torch_npu.int4: the published ACL number, 29, after those of torch's dtypes

# Published numbers of dtype arguments: torch's own, so that a torch dtype converts to them.
_DTYPES = {
    0: torch.uint8,
    1: torch.int8,
    2: torch.int16,
    3: torch.int32,
    4: torch.int64,
    5: torch.float16,
    6: torch.float32,
    7: torch.float64,
    11: torch.bool,
    12: torch.qint8,
    13: torch.quint8,
    14: torch.qint32,
    15: torch.bfloat16,
    16: torch.quint4x2,
}

Dtype = int | torch.dtype

# Takes a call of a published operator while a graph notes a task group or changes one: (operator, function, args,
# kwargs) -> results.
take_call: Callable[..., Any] | None = None

_CLASSES = {
    int: (numbers.Integral, torch.SymInt),
    bool: (numbers.Integral, torch.SymBool),
    float: (numbers.Real, torch.SymFloat, torch.SymInt),
}
_CALLED = {torch.Tensor: "tensor", torch.dtype: "torch dtype", NoneType: "None"}


def torch_dtype(name: str, value: Dtype) -> torch.dtype:
    """The torch dtype of the argument ``name``."""
    if isinstance(value, torch.dtype):
        return value
    if value not in _DTYPES:
        raise NotImplementedError(f"{name} {value} is a dtype that anynpu does not implement")
    return _DTYPES[value]


def require_absent(**arguments: object) -> None:
    """None of ``arguments`` is given: they belong to modes that are not implemented."""
    for name, value in arguments.items():
        if value is not None:
            got = value if isinstance(value, numbers.Number | str | torch.dtype) else f"a {type(value).__name__}"
            raise NotImplementedError(f"{name} is for modes that anynpu does not implement, got {got}")


def require_weight_dtype(weight: torch.Tensor, weight_dtype: Dtype | None) -> None:
    """``weight`` holds what ``weight_dtype`` says."""
    if weight_dtype is None:
        return
    stored = {INT4: torch.int32, 1: torch.int8, torch.int8: torch.int8, torch.quint4x2: torch.int32, 16: torch.int32}
    if weight_dtype not in stored:
        raise NotImplementedError(f"weight_dtype {weight_dtype} is not implemented by anynpu, int4 and int8 are")
    if weight.dtype != stored[weight_dtype]:
        raise TypeError(f"weight must be {stored[weight_dtype]} for weight_dtype {weight_dtype}, got {weight.dtype}")


def _is_union(hint: Any) -> bool:
    """Whether it has several kinds; Python 3.10 makes a Union of the annotations of arguments that default to None."""
    return typing.get_origin(hint) in (typing.Union, UnionType)


def _kinds(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if _is_union(hint) else (hint,)


def _fits(value: object, hint: Any) -> bool:
    if hint is Any or _is_union(hint):
        return hint is Any or any(_fits(value, kind) for kind in _kinds(hint))
    if typing.get_origin(hint) is not None:  # a sequence
        (kind,) = typing.get_args(hint)
        return isinstance(value, Sequence) and all(_fits(entry, kind) for entry in value)
    return isinstance(value, _CLASSES.get(hint, hint))


def _called(hint: Any) -> str:
    if typing.get_origin(hint) is not None and not _is_union(hint):
        return f"list of {_called(typing.get_args(hint)[0])}s"
    return _CALLED.get(hint) or hint.__name__


def _wrong_argument(hints: Mapping[str, Any], arguments: Mapping[str, Any]) -> tuple[str, Any] | None:
    """The sentence about the first argument that is not what its annotation says, and its value."""
    for name, value in arguments.items():
        hint = hints[name]
        if not _fits(value, hint):
            expected = " or ".join(map(_called, _kinds(hint)))
            article = "an" if expected.startswith("int") else "a"
            return f"{name} must be {article} {expected}, got {_kind(value)}", value
    return None


def _kind(value: object) -> str:
    entries = sorted({type(entry).__name__ for entry in value}) if isinstance(value, list | tuple) else []
    return type(value).__name__ + (f" of {', '.join(entries)}" if entries else "")


def published(schema: str, aclnn: str, code: Callable[..., int] = lambda **arguments: PARAM_INVALID) -> Callable:
    """Gives a function its operator ``torch.ops.npu.<name>`` and the vendor's shape of errors.

    ``code`` tells the status code of a refused call from its arguments.
    """

    def decorate(body: Callable[..., Any]) -> Callable[..., Any]:
        name = schema.partition("(")[0]
        hints = typing.get_type_hints(body)
        parameters = inspect.signature(body).parameters
        required = [
            parameter.name
            for parameter in parameters.values()
            if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
        ]

        def described(error: Exception, args: tuple, kwargs: dict[str, Any]) -> Exception:
            given = {**dict(zip(parameters, args, strict=False)), **kwargs}
            known = {name: given[name] for name in given if name in hints}
            wrong = _wrong_argument(hints, {**dict.fromkeys(required), **known})
            if wrong is not None:
                sentence, value = wrong
                return vendor_error(TypeError(sentence), name, aclnn, PARAM_NULLPTR if value is None else PARAM_INVALID)
            if isinstance(error, TypeError | ValueError | NotImplementedError):
                return vendor_error(error, name, aclnn, code(**given))
            return error

        @functools.wraps(body)
        def checked(*args: Any, **kwargs: Any) -> Any:
            if take_call is not None:
                return take_call(operator, checked, args, kwargs)
            try:
                if torch._C._is_any_autocast_enabled():  # the dtypes inside are those that the documents say
                    with torch._C._DisableAutocast():
                        return body(*args, **kwargs)
                return body(*args, **kwargs)
            except (AttributeError, TypeError, ValueError, RuntimeError) as error:
                better = described(error, args, kwargs)
                if better is error:
                    raise
                raise better from error

        _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        _library.impl(name, checked, "CompositeImplicitAutograd")
        namespace, _, overload = name.partition(".")
        operator = getattr(getattr(torch.ops.npu, namespace), overload or "default")

        @functools.wraps(body)
        def function(*args: Any, **kwargs: Any) -> Any:
            return (operator if torch.compiler.is_compiling() else checked)(*args, **kwargs)

        return function

    return decorate
