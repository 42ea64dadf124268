# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gpu_cases
import pytest
import torch

import anynpu
from anynpu.ops.quant_matmul.reference import error_bound, round_once


@gpu_cases.valid_calls("quant_matmul")
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


@pytest.mark.parametrize("group_size", [0, 96])
@pytest.mark.parametrize("bits", [4, 8])
def test_prepacked_x2(bits, group_size, kernel, device):
    if bits == 8 and group_size:
        pytest.skip("groups are of int4")
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(-(1 << bits - 1), 1 << bits - 1, (270, 72), dtype=torch.int32, generator=generator)
    weight = anynpu.int4_pack(codes) if bits == 4 else codes.to(torch.int8)
    args = {
        "x1": torch.randint(-128, 128, (3, 270), dtype=torch.int8, generator=generator),
        "x2": anynpu.weight_quant_prepack(weight),
        "scale": torch.rand((3, 72) if group_size else 72, generator=generator) / 99,
        "output_dtype": torch.float16,
        "group_size": group_size,
        "n": 72,
    }
    result = kernel("quant_matmul")(**gpu_cases.on(device, args))
    gpu_cases.assert_within(result, anynpu.reference.quant_matmul(**args), error_bound(**args))


def test_foreign_header_is_told_when_asked(kernel, device):
    blob = anynpu.weight_quant_prepack(torch.ones(40, 24, dtype=torch.int8))
    blob[16] ^= 1
    x1, scale = torch.ones(2, 40, dtype=torch.int8, device=device), torch.ones(1, device=device)
    kernel("quant_matmul")(x1, blob.to(device), scale, n=24)
    with pytest.raises(ValueError, match="quant_matmul: every value of the header .* flat position 16 "):
        anynpu.check_device_errors()
