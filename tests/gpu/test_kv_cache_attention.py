# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gpu_cases
import pytest
import torch

import anynpu
from anynpu._register import operators
from anynpu.ops.kv_cache_attention.spec import sample_arguments

ERROR_BOUND = operators["kv_cache_attention"].error_bound


@gpu_cases.valid_calls("kv_cache_attention", most=200_000)
def test_is_within_bound_of_reference(case, kernel, device):
    result = kernel("kv_cache_attention")(**gpu_cases.on(device, case.args))
    expected = anynpu.reference.kv_cache_attention(**case.args)
    gpu_cases.assert_within(result, expected, ERROR_BOUND(**case.args))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("length", [1, 20])
def test_wide_heads(length, dtype, kernel, device):
    """Fewer rows and queries at once."""
    args = sample_arguments(1, length, (2, 1), 512, dtype, (1, 70), [67])
    result = kernel("kv_cache_attention")(**gpu_cases.on(device, args))
    gpu_cases.assert_within(result, anynpu.reference.kv_cache_attention(**args), ERROR_BOUND(**args))
