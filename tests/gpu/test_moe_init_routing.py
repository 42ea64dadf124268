# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gpu_cases
import pytest
import torch

import anynpu


@gpu_cases.valid_calls("moe_init_routing")
def test_equals_reference(case, kernel, device):
    results = kernel("moe_init_routing")(**gpu_cases.on(device, case.args))
    for result, wanted in zip(results, anynpu.reference.moe_init_routing(**case.args), strict=True):
        gpu_cases.assert_within(result, wanted, None)


@pytest.mark.parametrize("quant_mode", [-1, 0, 1])
def test_rows_longer_than_a_block(quant_mode, kernel, device):
    generator = torch.Generator().manual_seed(0)
    args = {"x": torch.randn(2, 4100, generator=generator), "expert_num": 3, "quant_mode": quant_mode}
    args["expert_idx"] = torch.tensor([[2, 0], [0, 1]], dtype=torch.int32)
    if quant_mode == 0:
        args |= {"scale": torch.tensor([30.0]), "offset": torch.tensor([0.3])}
    if quant_mode == 1:
        args["scale"] = torch.rand(3, 4100, generator=generator)
    results = kernel("moe_init_routing")(**gpu_cases.on(device, args))
    for result, wanted in zip(results, anynpu.reference.moe_init_routing(**args), strict=True):
        gpu_cases.assert_within(result, wanted, None)
