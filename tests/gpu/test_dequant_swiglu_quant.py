# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import gpu_cases
import pytest
import torch

import anynpu
from anynpu.ops.dequant_swiglu_quant.reference import error_bound


def assert_within_bound(kernel, device, **args):
    results = kernel("dequant_swiglu_quant")(**gpu_cases.on(device, args))
    expected, bounds = anynpu.reference.dequant_swiglu_quant(**args), error_bound(**args)
    for result, wanted, bound in zip(results, expected, bounds, strict=True):
        gpu_cases.assert_within(result, wanted, bound)


@gpu_cases.valid_calls("dequant_swiglu_quant")
def test_is_within_bound_of_reference(case, kernel, device):
    assert_within_bound(kernel, device, **case.args)


@pytest.mark.parametrize("quant_mode", [0, 1])
def test_rows_longer_than_a_block(quant_mode, kernel, device):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-30000, 30000, (2, 2 * 4100), dtype=torch.int32, generator=generator)
    smooth = torch.rand(4100, generator=generator) + 0.5
    scale = torch.full((2 * 4100,), 1e-4)
    assert_within_bound(kernel, device, x=x, weight_scale=scale, quant_scale=smooth, quant_mode=quant_mode)


@pytest.mark.parametrize("swiglu_mode", [0, 1, 2])
def test_nan_infinity_and_large_values(swiglu_mode, kernel, device):
    """Each beside an ordinary value, so that what float32 cannot hold does not become the scale of the row.

    The sigmoid is 0 in float32 below -88, which times infinity is not a number.
    """
    others = [float("nan"), float("inf"), float("-inf"), 0.0, 1e-40, 1.0]
    gates = [*others, 3e38, -3e38, 89.0, -87.9, -88.1, -104.0]
    both = [(gate, other) for gate in gates for other in others if gate >= -88 or not math.isinf(other)]
    pairs = torch.tensor([[[gate, 1.0], [other, 1.0]] for gate, other in both])
    x = pairs.flatten(1) if swiglu_mode != 1 else pairs.transpose(1, 2).flatten(1)
    assert_within_bound(kernel, device, x=x, activate_left=True, swiglu_mode=swiglu_mode, quant_mode=1)


def test_an_integer_bias_does_not_wrap(kernel, device):
    x = torch.tensor([[2**31 - 1, -(2**31), 5, 7]], dtype=torch.int32)
    args = {"x": x, "bias": x[0], "weight_scale": torch.full((4,), 1e-9), "quant_mode": 1}
    assert_within_bound(kernel, device, **args)


@pytest.mark.parametrize("counts", [[2, -1, 3], [2, 2, 2]])
def test_wrong_group_index_is_told_and_gives_zeros(counts, kernel, device):
    x, group_index = torch.ones(5, 32, device=device), torch.tensor(counts, device=device)
    y, scale = kernel("dequant_swiglu_quant")(x, group_index=group_index, quant_mode=1)
    assert not y.any() and not scale.any()
    position = 1 if counts[1] < 0 else 2
    with pytest.raises(ValueError, match=f"dequant_swiglu_quant: every value of group_index .* position {position} "):
        anynpu.check_device_errors()
