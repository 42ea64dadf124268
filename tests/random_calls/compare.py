# SPDX-License-Identifier: Apache-2.0
"""One call of an operator on every tier and with 1 to 3 threads, beside its oracle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from gpu_cases import assert_within

from anynpu import _native
from anynpu._register import operators
from random_calls import others, products
from random_calls.draw import Draw

OPERATORS = {name: make for module in (products, others) for name, make in vars(module).items() if name in operators}


def draw_call(name: str, seed: int, most: int = 700) -> dict:
    """Arguments by the names of the schema."""
    return OPERATORS[name](Draw(seed, most))


def failure(name: str, args: dict, tiers: Sequence[str]) -> str | None:
    """What is wrong with the results, or None. An exception is wrong, too: the call is valid."""
    step, before = "the oracle", torch.get_num_threads()
    try:
        expected, bounds = expectation(name, args)
        for tier in tiers:
            _native.set_max_isa(tier)
            first = None
            for threads in (1, 2, 3):
                step = f"{tier}, {threads} threads"
                torch.set_num_threads(threads)
                results = outputs(name, operators[name].overload, args)
                for result, want, bound in zip(results, expected, bounds, strict=True):
                    assert_within(result, want, bound)
                first = first or results
                assert all(map(same_bits, results, first)), "not the bits of one thread"
    except Exception as error:
        return f"{step}: {type(error).__name__}: {error}; {describe(args)}"
    finally:
        _native.set_max_isa(None)
        torch.set_num_threads(before)
    return None


def expectation(name: str, args: dict) -> tuple[tuple, tuple]:
    """What the oracle makes of the call, and how far each result may be from it."""
    operator = operators[name]
    expected = outputs(name, operator.reference, args)
    if operator.error_bound is None:
        return expected, (None,) * len(expected)
    bounds = operator.error_bound(**args)
    return expected, tuple(bounds) if isinstance(bounds, tuple | list) else (bounds,)


def outputs(name: str, function: Callable, args: dict) -> tuple[torch.Tensor, ...]:
    """What ``function`` returns, and then the arguments that it writes to, which are copies."""
    written = [a.name for a in operators[name].overload._schema.arguments if a.alias_info and a.alias_info.is_write]
    copies = {key: args[key].clone() for key in written}
    results = function(**(args | copies))
    return (*(results if isinstance(results, tuple | list) else (results,)), *copies.values())


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one, other) or torch.equal(*(t.contiguous().flatten().view(torch.uint8) for t in (one, other)))


def describe(value: Any) -> str:
    """Dtypes, shapes and strides in place of the numbers."""
    if isinstance(value, dict):
        return ", ".join(f"{key}={describe(each)}" for key, each in value.items() if each is not None)
    if isinstance(value, list) and value and isinstance(value[0], torch.Tensor):
        return f"[{', '.join(map(describe, value))}]"
    if not isinstance(value, torch.Tensor):
        return repr(value)
    strides = "" if value.is_contiguous() else f" strides {list(value.stride())}"
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}{strides}"
