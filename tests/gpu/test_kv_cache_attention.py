# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gpu_cases
import pytest

import anynpu
from anynpu._register import operators

CASES = gpu_cases.valid("kv_cache_attention", most=200_000)
ERROR_BOUND = operators["kv_cache_attention"].error_bound


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_is_within_bound_of_reference(case, kernel, device):
    result = kernel("kv_cache_attention")(**gpu_cases.on(device, case.args))
    expected = anynpu.reference.kv_cache_attention(**case.args)
    gpu_cases.assert_within(result, expected, ERROR_BOUND(**case.args))
