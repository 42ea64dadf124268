# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import case_table
import pytest
import torch

import anynpu


@case_table.valid_calls("dynamic_quant")
def test_equals_reference(case, isa, each_thread_count):
    codes, scale = anynpu.reference.dynamic_quant(**case.args)
    for result in each_thread_count(lambda: anynpu.dynamic_quant(**case.args)):
        assert torch.equal(result[0], codes)
        assert torch.equal(result[1], scale)


@pytest.mark.parametrize("mode", ["pertoken", "perchannel", "pertensor"])
def test_nan_and_infinity(mode, isa):
    x = torch.tensor([[float("nan"), 1.0, -2.0], [float("inf"), 1.0, float("-inf")], [float("nan")] * 3])
    codes, scale = anynpu.dynamic_quant(x, quant_mode=mode)
    expected_codes, expected_scale = anynpu.reference.dynamic_quant(x, quant_mode=mode)
    assert torch.equal(codes, expected_codes)
    assert torch.equal(scale, expected_scale)
    assert codes[2].tolist() == [0, 0, 0]


def test_dequantised_codes_are_near(isa):
    x = torch.randn(64, 500, generator=torch.Generator().manual_seed(0))
    codes, scale = anynpu.dynamic_quant(x)
    # Half a step, and the float32 rounding of one division and one product.
    assert torch.all((codes * scale.unsqueeze(1) - x).abs() <= scale.unsqueeze(1) * (0.5 + 127 * 2.0**-22))


def test_the_dtype_may_be_left_out():
    x = torch.randn(3, 8)
    for mode in ("pertoken", "pertensor"):
        left_out = torch.ops.anynpu.dynamic_quant(x, quant_mode=mode)
        for ours, theirs in zip(left_out, anynpu.dynamic_quant(x, quant_mode=mode), strict=True):
            assert torch.equal(ours, theirs)
