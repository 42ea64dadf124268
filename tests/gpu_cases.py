# SPDX-License-Identifier: Apache-2.0
"""Moves the rows of the case tables to the device of a test."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import case_table
import pytest
import torch

from anynpu._register import operators

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def valid_calls(
    operator: str, wanted: Callable[[case_table.Case], bool] = lambda case: True, most: int = 60_000
) -> pytest.MarkDecorator:
    """As in case_table; in the interpreter those whose tensors have no more than ``most`` elements."""

    def fits(case: case_table.Case) -> bool:
        return not INTERPRETED or max(map(torch.numel, _tensors(case.args))) <= most

    return case_table.valid_calls(operator, lambda case: wanted(case) and fits(case))


def calls(operator: str) -> Iterator[tuple[str, dict]]:
    """The samples of an operator, and the valid rows of its case table that have its arguments: (name, arguments)."""
    arguments = operators[operator].overload._schema.arguments
    names = [argument.name for argument in arguments]
    absent = {argument.name: None for argument in arguments if not argument.has_default_value()}
    for sample in operators[operator].samples():
        yield sample.name, dict(zip(names, sample.args, strict=False))
    if (case_table.CASES / f"{operator}.yaml").exists():
        for case in case_table.load(operator):
            if case.error is None and case.args.keys() <= set(names):
                yield case.name, absent | case.args


def _tensors(args: dict) -> list[torch.Tensor]:
    """Those of the arguments, also in lists."""
    values = [each for value in args.values() for each in (value if isinstance(value, list) else [value])]
    return [value for value in values if isinstance(value, torch.Tensor)]


def on(device: torch.device, args: dict) -> dict:
    """Copies of the tensors on ``device``, of the same strides."""
    return {name: _moved(device, value) for name, value in args.items()}


def _moved(device: torch.device, value: object) -> object:
    if isinstance(value, list):
        return [_moved(device, each) for each in value]
    if not isinstance(value, torch.Tensor):
        return value
    steps = value.stride()
    repeated = [size > 1 and step == 0 for size, step in zip(value.shape, steps, strict=True)]
    once = value[tuple(slice(0, 1) if each else slice(None) for each in repeated)]
    copy = torch.empty_strided(once.shape, steps, dtype=value.dtype, device=device)
    return copy.copy_(once).expand(value.shape)


def assert_within(result: torch.Tensor, expected: torch.Tensor, bound: torch.Tensor | None) -> None:
    """Shape and dtype are the same, and no element is farther off than ``bound`` (None: equal; NaN equals NaN)."""
    result = result.cpu()
    assert (result.shape, result.dtype) == (expected.shape, expected.dtype)
    right = (result == expected) | ((result != result) & (expected != expected))
    if bound is not None:
        right |= (result.double() - expected.double()).abs() <= bound
    assert right.all(), f"{int((~right).sum())} of {right.numel()} elements are wrong, {result[~right][0]}"
