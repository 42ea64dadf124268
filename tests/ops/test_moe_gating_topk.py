# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import case_table
import pytest
import torch

import anynpu
from anynpu.ops.moe_gating_topk.reference import error_bound


@case_table.valid_calls("moe_gating_topk")
def test_is_as_close_to_the_reference_as_float32_allows(case, isa, each_thread_count):
    expected = anynpu.reference.moe_gating_topk(**case.args)
    bounds = error_bound(**case.args)
    for results in each_thread_count(lambda: anynpu.moe_gating_topk(**case.args)):
        for result, want, bound in zip(results, expected, bounds, strict=True):
            assert (result.dtype, result.shape) == (want.dtype, want.shape)
            assert ((result.double() - want.double()).abs() <= bound).all()


def test_the_bias_decides_and_does_not_weigh():
    x = torch.zeros(1, 4)
    y, experts, scores = anynpu.moe_gating_topk(x, 2, bias=torch.tensor([0.0, 5.0, 0.0, 9.0]), norm_type=1)
    assert experts.tolist() == [[3, 1]]
    assert y.tolist() == [[0.5, 0.5]]
    assert scores.tolist() == [[0.5] * 4]


@pytest.mark.parametrize("group_select_mode", [0, 1])
def test_a_group_with_nan_is_worth_most(group_select_mode, isa):
    nan = float("nan")
    x = torch.tensor([[1, 2, 3, nan, 5, 6, 7, 8], [nan, 2, 9, 4, 5, 6, 7, 8], [9, 8, 7, 6, nan, 1, 2, 3]])
    options = {"k": 2, "group_count": 4, "k_group": 1, "group_select_mode": group_select_mode, "norm_type": 1}
    _, experts, _ = anynpu.moe_gating_topk(x, **options)
    assert torch.equal(experts, torch.tensor([[3, 2], [0, 1], [4, 5]], dtype=torch.int32))
    assert torch.equal(experts, anynpu.reference.moe_gating_topk(x, **options)[1])
