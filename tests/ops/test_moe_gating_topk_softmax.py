# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import builtins

import case_table
import pytest
import torch

import anynpu
from anynpu.ops.moe_gating_topk_softmax.reference import error_bound

CASES = case_table.load("moe_gating_topk_softmax")
VALID = [case for case in CASES if case.error is None]
INVALID = [case for case in CASES if case.error is not None]


def names(cases):
    return [case.name for case in cases]


@pytest.mark.parametrize("case", VALID, ids=names(VALID))
def test_is_as_close_to_the_reference_as_float32_allows(case, each_thread_count):
    expected = anynpu.reference.moe_gating_topk_softmax(**case.args)
    bounds = error_bound(**case.args)
    for results in each_thread_count(lambda: anynpu.moe_gating_topk_softmax(**case.args)):
        for result, want, bound in zip(results, expected, bounds, strict=True):
            assert (result.dtype, result.shape) == (want.dtype, want.shape)
            assert ((result.double() - want.double()).abs() <= bound).all()


@pytest.mark.parametrize("function", [anynpu.moe_gating_topk_softmax, anynpu.reference.moe_gating_topk_softmax],
                         ids=["cpu", "reference"])  # fmt: skip
@pytest.mark.parametrize("case", INVALID, ids=names(INVALID))
def test_invalid_call_raises(case, function):
    with pytest.raises(getattr(builtins, case.error["python"]), match=case.error["match"]):
        function(**case.args)


def test_row_idx_counts_by_column():
    row_idx = anynpu.moe_gating_topk_softmax(torch.randn(3, 5), k=2)[2]
    assert row_idx.tolist() == [[0, 3], [1, 4], [2, 5]]


def test_float16_ties_go_to_the_lower_index():
    """exp(-20) and exp(-20.5) of float16 logits are both 0 in float16."""
    x = torch.tensor([[-20.5, 0.0, -20.0]], dtype=torch.float16)
    assert anynpu.moe_gating_topk_softmax(x, k=3)[1].tolist() == [[1, 0, 2]]
    assert anynpu.moe_gating_topk_softmax(x.float(), k=3)[1].tolist() == [[1, 2, 0]]


@pytest.mark.parametrize("renorm", [0, 1])
@pytest.mark.parametrize(
    "row, experts",
    [
        ([0.0, -torch.inf, 1.0, -torch.inf], [2, 0, 1, 3]),
        ([-torch.inf, 3.0, -torch.inf, -torch.inf], [1, 0, 2, 3]),
    ],
)
def test_names_each_expert_once_when_logits_are_infinite(row, experts, renorm):
    x = torch.tensor([row])
    for function in (anynpu.moe_gating_topk_softmax, anynpu.reference.moe_gating_topk_softmax):
        assert function(x, k=4, renorm=renorm)[1].tolist() == [experts]


def test_puts_logits_that_are_no_numbers_first():
    x = torch.tensor([[1.0, torch.nan, 2.0, torch.nan]])
    for function in (anynpu.moe_gating_topk_softmax, anynpu.reference.moe_gating_topk_softmax):
        assert function(x, k=4, renorm=1)[1].tolist() == [[1, 3, 2, 0]]
