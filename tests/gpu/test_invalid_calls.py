# SPDX-License-Identifier: Apache-2.0
"""Every invalid call of the case tables is refused: at once, or when somebody asks if only the data are wrong."""

from __future__ import annotations

import builtins

import case_table
import gpu_cases
import pytest

import anynpu
from anynpu._register import operators

OPERATORS = [
    name
    for name in sorted(operators)
    if (operators[name].cuda or "").endswith(".triton") and (case_table.CASES / f"{name}.yaml").exists()
]
ONLY_THE_PUBLIC_FUNCTION_TAKES = {"quant_mode", "input_layout"}
CASES = [
    (operator, case)
    for operator in OPERATORS
    for case in case_table.load(operator)
    if case.error is not None and (operator == "dynamic_quant" or not ONLY_THE_PUBLIC_FUNCTION_TAKES & case.args.keys())
]


@pytest.mark.parametrize(("operator", "case"), CASES, ids=[f"{operator}: {case.name}" for operator, case in CASES])
def test_is_refused(operator, case, kernel, device):
    args = gpu_cases.on(device, case.args)
    error = getattr(builtins, case.error["python"])
    try:
        kernel(operator)(**args)
    except error as refusal:
        assert operator in str(refusal)
    else:
        with pytest.raises(error, match=f"{operator}: every value of .* at flat position"):
            anynpu.check_device_errors()
