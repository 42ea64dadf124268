# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gpu_cases
import pytest
import torch

import anynpu


@gpu_cases.valid_calls("int4_pack")
def test_packs_as_the_reference(case, kernel, device):
    args = gpu_cases.on(device, case.args)
    gpu_cases.assert_within(kernel("int4_pack")(**args), anynpu.reference.int4_pack(**case.args), None)


@pytest.mark.parametrize("shape", [(1, 2), (3, 5, 6), (65, 130)])
def test_bytes(shape, kernel, device):
    weight = torch.randint(-8, 8, shape, dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    packed = kernel("int4_pack")(weight.to(device), torch.uint8)
    gpu_cases.assert_within(packed, anynpu.reference.int4_pack(weight, torch.uint8), None)
    unpacked = kernel("int4_unpack")(packed, torch.int8)
    gpu_cases.assert_within(unpacked, weight.to(torch.int8), None)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int8])
def test_unpacks_any_word(dtype, kernel, device):
    words = torch.randint(-(2**31), 2**31, (17, 33), generator=torch.Generator().manual_seed(1)).to(torch.int32)
    expected = anynpu.reference.int4_unpack(words, dtype)
    gpu_cases.assert_within(kernel("int4_unpack")(words.to(device), dtype), expected, None)


@pytest.mark.parametrize(("value", "position"), [(8, 0), (-9, 1000), (2**31 - 1, 5 * 720 - 1), (-(2**31), 72)])
def test_value_outside_is_told_when_asked(value, position, kernel, device):
    weight = torch.zeros(5, 720, dtype=torch.int32)
    weight.view(-1)[position] = value
    kernel("int4_pack")(weight.to(device))
    sentence = rf"int4_pack: every value of weight must be in \[-8, 7\], got another at flat position {position} on"
    with pytest.raises(ValueError, match=sentence):
        anynpu.check_device_errors(device)
    anynpu.check_device_errors(device)  # told once


def test_the_first_of_several_is_told(kernel, device):
    weight = torch.zeros(40, 720, dtype=torch.int32)
    weight.view(-1)[[28000, 9000, 9001]] = 99
    kernel("int4_pack")(weight.to(device))
    with pytest.raises(ValueError, match="flat position 9000 "):
        anynpu.check_device_errors()
