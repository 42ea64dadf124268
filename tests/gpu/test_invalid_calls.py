# SPDX-License-Identifier: Apache-2.0
"""Every invalid call of the case tables is refused: at once, or when somebody asks if only the data are wrong."""

from __future__ import annotations

import builtins

import case_table
import gpu_cases
import pytest

import anynpu
from anynpu._register import operators

OPERATORS = [name for name in sorted(operators) if operators[name].cuda.endswith(".triton")]


def fits(operator, case):
    """Whether the operator has all arguments of a row; some belong to the public function or to the test of the CPU."""
    declared = {argument.name for argument in operators[operator].overload._schema.arguments}
    return case.args.keys() <= declared


CASES = [
    (operator, case)
    for operator in OPERATORS
    if (case_table.CASES / f"{operator}.yaml").exists()
    for case in case_table.load(operator)
    if case.error is not None and fits(operator, case)
]


@pytest.mark.parametrize(("operator", "case"), CASES, ids=[f"{operator}: {case.name}" for operator, case in CASES])
def test_is_refused(operator, case, kernel, device):
    args = gpu_cases.on(device, case.args)
    try:
        kernel(operator)(**args)
    except (TypeError, ValueError, NotImplementedError) as refusal:
        assert f"{operator}: " in str(refusal)
    else:
        with pytest.raises(
            getattr(builtins, case.error["python"]), match=f"{operator}: every value of .* at flat position"
        ):
            anynpu.check_device_errors()
