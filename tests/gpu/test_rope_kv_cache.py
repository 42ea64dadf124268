# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gpu_cases

import anynpu
from anynpu._register import operators

ERROR_BOUND = operators["rope_kv_cache"].error_bound


@gpu_cases.valid_calls("rope_kv_cache")
def test_is_within_bound_of_reference(case, kernel, device):
    args = gpu_cases.on(device, case.args)
    bounds = ERROR_BOUND(**case.args)
    results = (*kernel("rope_kv_cache")(**args), args["k_cache"], args["v_cache"])
    expected = (*anynpu.reference.rope_kv_cache(**case.args), case.args["k_cache"], case.args["v_cache"])
    for result, right, bound in zip(results, expected, bounds, strict=True):
        gpu_cases.assert_within(result, right, bound)
