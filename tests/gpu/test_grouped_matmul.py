# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gpu_cases
import pytest
import torch

import anynpu
from anynpu.ops.grouped_matmul.reference import error_bound

OPTIONS = {"split_item": 2, "group_type": 0}


@gpu_cases.valid_calls("grouped_matmul")
def test_is_within_bound_of_reference(case, kernel, device):
    results = kernel("grouped_matmul")(**gpu_cases.on(device, case.args))
    expected, bounds = anynpu.reference.grouped_matmul(**case.args), error_bound(**case.args)
    for result, wanted, bound in zip(results, expected, bounds, strict=True):
        gpu_cases.assert_within(result, wanted, bound)


@pytest.mark.parametrize("pairs", [[[2, 3], [1, 1]], [[3, 1]], [[0, 2], [2, -1]], [[0, 2], [2, 4]], [[1, 1], [1, 1]]])
def test_wrong_pairs_are_told_and_give_zeros(pairs, kernel, device):
    x, weight = (
        torch.ones(5, 16, dtype=torch.int8, device=device),
        torch.ones(3, 16, 8, dtype=torch.int8, device=device),
    )
    group_list = torch.tensor(pairs, device=device)
    [y] = kernel("grouped_matmul")([x], [weight], group_list, group_list_type=2, **OPTIONS)
    assert not y.any()
    with pytest.raises(ValueError, match="grouped_matmul: every value of group_list .* flat position"):
        anynpu.check_device_errors()


def test_many_x_say_themselves_how_many_rows_they_have(kernel, device):
    x = [torch.ones(rows, 16, dtype=torch.int8, device=device) for rows in (2, 0, 3)]
    weight = [torch.full((16, 8), value, dtype=torch.int8, device=device) for value in (1, 2, 3)]
    for ends in ([2, 2, 5], [2, 3, 5]):
        [y] = kernel("grouped_matmul")(x, weight, torch.tensor(ends, device=device), **OPTIONS)
        assert y.tolist() == [[16] * 8] * 2 + [[48] * 8] * 3
        if ends[1] == 3:
            with pytest.raises(ValueError, match="grouped_matmul: every value of group_list .* flat position 1 "):
                anynpu.check_device_errors()
        anynpu.check_device_errors()


def test_bias_that_could_overflow_is_told_when_asked(kernel, device):
    x, weight = (
        torch.zeros(2, 4, dtype=torch.int8, device=device),
        torch.zeros(2, 4, 3, dtype=torch.int8, device=device),
    )
    bias = torch.zeros(2, 3, dtype=torch.int32, device=device)
    bias[1, 2] = 2147418112
    kernel("grouped_matmul")([x], [weight], torch.tensor([1, 2], device=device), [bias], **OPTIONS)
    with pytest.raises(ValueError, match="grouped_matmul: every value of bias .* flat position 5 "):
        anynpu.check_device_errors()
