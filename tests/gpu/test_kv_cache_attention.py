# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gpu_cases

import anynpu
from anynpu._register import operators

ERROR_BOUND = operators["kv_cache_attention"].error_bound


@gpu_cases.valid_calls("kv_cache_attention", most=200_000)
def test_is_within_bound_of_reference(case, kernel, device):
    result = kernel("kv_cache_attention")(**gpu_cases.on(device, case.args))
    expected = anynpu.reference.kv_cache_attention(**case.args)
    gpu_cases.assert_within(result, expected, ERROR_BOUND(**case.args))
