# SPDX-License-Identifier: Apache-2.0
"""Calls with an argument changed at random: most are invalid, and none may crash, or write before it is refused."""

from __future__ import annotations

from typing import Any

import torch

from anynpu import _native
from anynpu._register import operators
from random_calls.compare import describe
from random_calls.draw import Draw

DTYPES = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.bool, *(torch.float16, torch.bfloat16))
DTYPES += (torch.float32, torch.float64)
INTEGERS = (-1, 0, 1, 2, 3, 1000, 2**40)  # the last one asks for more memory than there is
REFUSALS = (ValueError, TypeError, NotImplementedError)


def damaged(draw: Draw, args: dict) -> dict:
    """The arguments with one or two of them changed."""
    args = dict(args)
    for _ in range(draw.one_of(1, 1, 1, 2)):
        name = draw.one_of(*args)
        args[name] = _changed(draw, args[name])
    return args


def _changed(draw: Draw, value: Any) -> Any:
    if isinstance(value, list) and value:
        at = draw.number(0, len(value) - 1)
        return draw.one_of(value[:-1], [*value, value[-1]], [*value[:at], _changed(draw, value[at]), *value[at + 1 :]])
    if isinstance(value, torch.Tensor):
        changes = (_other_dtype, _other_value, *(2 * (_other_shape,) if value.dim() else ()))
        return draw.one_of(*changes)(draw, value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return draw.one_of(*INTEGERS, value + 1, value - 1, 2 * value)
    if isinstance(value, float):
        return draw.one_of(0.0, -1.0, float("nan"), float("inf"))
    return value


def _other_dtype(draw: Draw, tensor: torch.Tensor) -> torch.Tensor:
    return tensor.nan_to_num(posinf=0, neginf=0).to(draw.one_of(*DTYPES))


def _other_shape(draw: Draw, tensor: torch.Tensor) -> torch.Tensor:
    axis = draw.number(0, tensor.dim() - 1)
    size = tensor.shape[axis]
    changes = [
        lambda: tensor.unsqueeze(axis),
        lambda: tensor.flatten(),
        lambda: tensor.narrow(axis, 0, draw.number(0, size)),
        lambda: torch.cat([tensor, tensor], axis),
        lambda: tensor.transpose(axis, 0),
        lambda: tensor.new_empty(0),
    ]
    if size:
        changes += [lambda: tensor.select(axis, 0), lambda: tensor.narrow(axis, 0, 1).expand(tensor.shape)]
    return draw.one_of(*changes)()


def _other_value(draw: Draw, tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dtype.is_floating_point:
        value = draw.one_of(float("nan"), float("inf"), -float("inf"), 1e38, 1e-45, 0.0)
    else:
        value = draw.one_of(-1, 1, 127, *((-(2**31), 2**31 - 1, 1000) if tensor.dtype.itemsize >= 4 else ()))
    copy = tensor.clone()
    if copy.numel():
        copy[tuple(draw.number(0, size - 1) for size in copy.shape)] = value
    return copy


def fault(name: str, args: dict, tier: str) -> str | None:
    """What is wrong with how the operator takes the call, or None. That it does not crash is seen by who runs this."""
    overload = operators[name].overload
    before = {key: value.clone() for key, value in args.items() if isinstance(value, torch.Tensor)}
    _native.set_max_isa(tier)
    try:
        overload(**args)
    except REFUSALS as error:
        for key, value in before.items():
            if not torch.equal(value.nan_to_num(), args[key].nan_to_num()):
                return f"{tier}: {key} was written to, and then {error}; {describe(args)}"
    except Exception as error:
        if "allocate memory" in str(error):
            return None
        return f"{tier}: {type(error).__name__}: {error}; {describe(args)}"
    finally:
        _native.set_max_isa(None)
    return None
