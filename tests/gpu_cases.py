# SPDX-License-Identifier: Apache-2.0
"""Moves the rows of the case tables to the device of a test."""

from __future__ import annotations

import os
from collections.abc import Callable

import case_table
import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def valid_calls(
    operator: str, wanted: Callable[[case_table.Case], bool] = lambda case: True, most: int = 60_000
) -> pytest.MarkDecorator:
    """As in case_table; in the interpreter those whose tensors have no more than ``most`` elements."""

    def fits(case: case_table.Case) -> bool:
        return not INTERPRETED or max(map(torch.numel, _tensors(case.args))) <= most

    return case_table.valid_calls(operator, lambda case: wanted(case) and fits(case))


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
    copy = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)
    return copy.copy_(value)


def assert_within(result: torch.Tensor, expected: torch.Tensor, bound: torch.Tensor | None) -> None:
    """Shape and dtype are the same, and no element is farther off than ``bound`` (None: equal; NaN equals NaN)."""
    result = result.cpu()
    assert (result.shape, result.dtype) == (expected.shape, expected.dtype)
    right = (result == expected) | ((result != result) & (expected != expected))
    if bound is not None:
        right |= (result.double() - expected.double()).abs() <= bound
    assert right.all(), f"{int((~right).sum())} of {right.numel()} elements are wrong, {result[~right][0]}"
