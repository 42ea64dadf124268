# SPDX-License-Identifier: Apache-2.0
"""Functions of a record are called with its fields; its tensors are found by their annotations."""

from __future__ import annotations

import gc
import inspect
import weakref
from typing import NamedTuple

import pytest
import torch

from anynpu._arguments import takes, tensors_of, with_tensors


class Arguments(NamedTuple):
    x: torch.Tensor
    size: int
    scale: torch.Tensor | None = None
    bias: torch.Tensor | None = None


@takes(Arguments)
def called(a: Arguments) -> tuple:
    """What it was called with."""
    return a


X, BIAS = torch.ones(2), torch.zeros(3)


def test_fields_are_given_by_position_or_by_name():
    assert called(X, 4, bias=BIAS) == Arguments(X, 4, None, BIAS)
    with pytest.raises(TypeError, match=r"^called\(\) missing 1 required positional argument: 'size'$"):
        called(X)
    with pytest.raises(TypeError, match=r"^called\(\) got an unexpected keyword argument 'offset'"):
        called(X, 4, offset=BIAS)


def test_help_shows_the_fields():
    signature = "(x: torch.Tensor, size: int, scale: torch.Tensor | None = None, bias: torch.Tensor | None = None)"
    assert str(inspect.signature(called)) == f"{signature} -> tuple"
    assert called.__doc__ == "What it was called with."


def test_tensors_are_those_that_may_be_tensors():
    assert tensors_of(Arguments(X, 4, bias=BIAS)) == (X, None, BIAS)


def test_other_tensors_take_the_places_of_those_of_a_call():
    first = torch.zeros(1)
    call, kept = with_tensors(Arguments(first, 4, bias=first)), weakref.ref(first)
    del first
    gc.collect()
    assert kept() is None
    assert call(X, BIAS) == Arguments(X, 4, bias=BIAS)
