# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gpu_cases
import pytest

import anynpu
from anynpu.ops.grouped_matmul_combine.reference import error_bound

CASES = gpu_cases.valid("grouped_matmul_combine")


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_is_within_bound_of_reference(case, kernel, device):
    result = kernel("grouped_matmul_combine")(**gpu_cases.on(device, case.args))
    expected = anynpu.reference.grouped_matmul_combine(**case.args)
    gpu_cases.assert_within(result, expected, error_bound(**case.args))
