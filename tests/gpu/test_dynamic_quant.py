# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gpu_cases
import pytest
import torch

import anynpu


@gpu_cases.valid_calls("dynamic_quant")
def test_equals_reference(case, kernel, device):
    results = kernel("dynamic_quant")(**gpu_cases.on(device, case.args))
    for result, expected in zip(results, anynpu.reference.dynamic_quant(**case.args), strict=True):
        gpu_cases.assert_within(result, expected, None)


@pytest.mark.parametrize("mode", ["pertoken", "perchannel", "pertensor"])
def test_nan_and_infinity(mode, kernel, device):
    x = torch.tensor([[float("nan"), 1.0, -2.0], [float("inf"), 1.0, float("-inf")], [float("nan")] * 3])
    results = kernel("dynamic_quant")(x.to(device), quant_mode=mode)
    for result, expected in zip(results, anynpu.reference.dynamic_quant(x, quant_mode=mode), strict=True):
        gpu_cases.assert_within(result, expected, None)


@pytest.mark.parametrize("mode", ["pertoken", "pertensor"])
@pytest.mark.parametrize("ends", [[4, 3, 5], [1, 2, 6]])
def test_wrong_group_index_is_told_when_asked(ends, mode, kernel, device):
    x, smooth = torch.ones(5, 16, device=device), torch.ones(3, 16, device=device)
    kernel("dynamic_quant")(x, smooth, torch.tensor(ends, dtype=torch.int32, device=device), quant_mode=mode)
    position = 1 if ends[1] == 3 else 2
    with pytest.raises(ValueError, match=f"dynamic_quant: every value of group_index .* flat position {position} "):
        anynpu.check_device_errors()
