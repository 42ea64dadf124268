# SPDX-License-Identifier: Apache-2.0
"""A few random calls of each operator; `python -m random_calls` in this folder makes more of them."""

from __future__ import annotations

import pytest
from random_calls.compare import OPERATORS, draw_call, failure
from random_calls.damage import damaged, fault
from random_calls.draw import Draw

CALLS = 8
DAMAGED = 60
MOST = 200  # of any size: oracles are slow


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_random_calls_equal_the_oracle(name, isa):
    for seed in range(CALLS):
        assert failure(name, draw_call(name, seed, MOST), [isa]) is None, f"--operator {name} --seed {seed}"


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_calls_with_changed_arguments_are_refused_or_made(name, isa):
    for seed in range(DAMAGED):
        args = damaged(Draw(seed), draw_call(name, seed, 40))
        assert fault(name, args, isa) is None, f"--damage --operator {name} --seed {seed}"
