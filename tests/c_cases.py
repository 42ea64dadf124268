# SPDX-License-Identifier: Apache-2.0
"""Rows of the case tables as calls of the C front end, and what is asked of their results."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import c_front_end
import case_table
import pytest
import torch

UNTOUCHED = int.from_bytes(bytes([c_front_end.POISON] * 4), "little", signed=True)


def cases(operator, *absent):
    """Rows of a table that use none of the arguments that C lacks."""
    return [case for case in case_table.load(operator, "c") if not set(absent) & set(case.args)]


def valid(rows):
    return pytest.mark.parametrize("case", [case for case in rows if case.error is None], ids=lambda case: case.name)


def invalid(rows):
    return pytest.mark.parametrize(
        "case", [case for case in rows if case.error is not None], ids=lambda case: case.name
    )


def run(function, inputs, outputs, arguments):
    """Outcome of a call and its outputs; ``arguments(*handles)`` puts the handles in their order."""
    with c_front_end.session() as make:
        made = [make.output(shape, dtype) for shape, dtype in outputs]
        handles = [make.tensor(each) for each in inputs]
        outcome = c_front_end.call(function, *arguments(*handles, *(each.handle for each in made)))
        if outcome.status != 0:
            assert all(each.is_untouched() for each in made)
            return outcome, None
        return outcome, [each.tensor(shape, dtype) for each, (shape, dtype) in zip(made, outputs, strict=True)]


def assert_equal(results, expected):
    for result, want in zip(results, expected, strict=True):
        torch.testing.assert_close(result, want.contiguous(), rtol=0, atol=0, equal_nan=True)


def assert_refused(outcome, case):
    assert outcome.status == case.error["status"], outcome
    assert re.search(case.error["match"], outcome.sentence), outcome


def strict_lines(chip, module):
    """Status and sentence of each outcome of ``beyond()`` in ``module``, from a process in strict mode: C asks once."""
    program = (
        f"import anynpu, {module}\n"
        "anynpu.strict(None)  # of Python\n"
        f"for outcome in {module}.beyond():\n"
        "    print(outcome.status, outcome.sentence)\n"
    )
    tests = Path(__file__).parent
    path = os.pathsep.join(map(str, (tests / "capi", tests)))
    environment = os.environ | {"ANYNPU_STRICT": chip, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()
