# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gpu_cases
import pytest
import torch

import anynpu
from anynpu.ops.quant_matmul.reference import error_bound, round_once


def is_of_int8(case):
    """The public function unpacks int4 for the operator."""
    return case.args["x2"].dtype == torch.int8 and "group_size" not in case.args


@gpu_cases.valid_calls("quant_matmul", is_of_int8)
def test_is_within_bound_of_reference(case, kernel, device):
    result = kernel("quant_matmul")(**gpu_cases.on(device, case.args))
    gpu_cases.assert_within(result, anynpu.reference.quant_matmul(**case.args), error_bound(**case.args))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_results_round_once(dtype, kernel, device):
    """Products that lie close beside a tie of the output: rounding through float32 would get them wrong."""
    sums = torch.arange(1, 4001)
    x1 = torch.stack([sums // 127, sums % 127], dim=1).to(torch.int8)
    x2 = torch.tensor([[127], [1]], dtype=torch.int8)
    scale = torch.tensor([1 + 2.0**-11 + 2.0**-23], dtype=torch.float32)
    expected = round_once(sums.double().unsqueeze(1) * scale.double(), dtype)
    args = gpu_cases.on(device, {"x1": x1, "x2": x2, "scale": scale})
    gpu_cases.assert_within(kernel("quant_matmul")(**args, output_dtype=dtype), expected, None)


def test_the_offset_in_a_word_is_for_int8(kernel, device):
    x1, x2 = torch.zeros(1, 4, dtype=torch.int8, device=device), torch.zeros(4, 2, dtype=torch.int8, device=device)
    word = anynpu.trans_quant_param(torch.tensor([0.5, 0.25]), torch.tensor([3.0, -7.0])).to(device)
    assert kernel("quant_matmul")(x1, x2, word).tolist() == [[3, -7]]
    assert kernel("quant_matmul")(x1, x2, word, output_dtype=torch.float16).tolist() == [[0, 0]]
    offset = torch.tensor([1.0], device=device)
    assert kernel("quant_matmul")(x1, x2, word.view(torch.uint64), offset=offset).tolist() == [[1, 1]]


def test_bias_that_could_overflow_is_told_when_asked(kernel, device):
    x1, x2 = torch.zeros(1, 4, dtype=torch.int8, device=device), torch.zeros(4, 3, dtype=torch.int8, device=device)
    for value, wrong in ((2147418111, False), (2147418112, True), (-2147418112, True)):
        bias = torch.tensor([0, value, 0], dtype=torch.int32, device=device)
        kernel("quant_matmul")(x1, x2, torch.ones(1, device=device), bias=bias, output_dtype=torch.float16)
        if wrong:
            with pytest.raises(ValueError, match="quant_matmul: every value of bias .* flat position 1 "):
                anynpu.check_device_errors()
        anynpu.check_device_errors()
