# SPDX-License-Identifier: Apache-2.0
"""Kernels touch nothing beside their tensors: each one ends, or begins, where memory does."""

from __future__ import annotations

import functools

import pytest
import torch
from fences import fenced, fenced_copy
from random_calls.compare import OPERATORS, draw_call, outputs, same_bits

from anynpu import _native, _repeat
from anynpu._register import operators

CALLS = 3
MOST = 200  # of any size


@pytest.fixture(params=[False, True], ids=["behind", "before"])
def before(request, monkeypatch):
    """Where the fences are. Results have them too; no call is remembered, so that later ones have none."""
    monkeypatch.setattr(_native, "allocate", functools.partial(fenced, before=request.param))
    monkeypatch.setattr(_repeat.Repeats, "find", lambda self, args: None)
    monkeypatch.setattr(_repeat.Repeats, "add", lambda self, args, plan: None)
    return request.param


def with_fences(value, before):
    if isinstance(value, list):
        return [with_fences(each, before) for each in value]
    return fenced_copy(value, before) if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_operators_stay_within_their_tensors(name, before, isa):
    call = operators[name].overload
    written = [argument.name for argument in call._schema.arguments if argument.is_write]
    for seed in range(CALLS):
        args = draw_call(name, seed, MOST)
        expected = outputs(name, call, args)
        args = {key: with_fences(value, before) for key, value in args.items()}
        results = call(**args)
        results = (*(results if isinstance(results, tuple | list) else (results,)), *(args[key] for key in written))
        assert all(map(same_bits, results, expected)), f"--operator {name} --seed {seed}"
