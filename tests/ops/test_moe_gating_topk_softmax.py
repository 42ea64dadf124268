# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import case_table
import gpu_cases
import pytest
import torch

import anynpu
from anynpu.ops.moe_gating_topk_softmax.reference import error_bound


@case_table.valid_calls("moe_gating_topk_softmax")
def test_is_as_close_to_the_reference_as_float32_allows(case, isa, each_thread_count):
    expected = anynpu.reference.moe_gating_topk_softmax(**case.args)
    first, *others = each_thread_count(lambda: anynpu.moe_gating_topk_softmax(**case.args))
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=0, equal_nan=True)
    for result, want, bound in zip(first, expected, error_bound(**case.args), strict=True):
        gpu_cases.assert_within(result, want, bound)


def test_row_idx_counts_by_column():
    row_idx = anynpu.moe_gating_topk_softmax(torch.randn(3, 5), k=2)[2]
    assert row_idx.tolist() == [[0, 3], [1, 4], [2, 5]]


def test_float16_ties_go_to_the_lower_index(isa):
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
def test_names_each_expert_once_when_logits_are_infinite(row, experts, renorm, isa):
    x = torch.tensor([row])
    for function in (anynpu.moe_gating_topk_softmax, anynpu.reference.moe_gating_topk_softmax):
        assert function(x, k=4, renorm=renorm)[1].tolist() == [experts]


def test_equal_logits_are_equal_probabilities_everywhere_in_a_row(isa):
    x = torch.full((3, 133), 0.7)
    x[1, ::2], x[2, 1::3] = -3.1, -80.3
    _, experts, _, softmax = anynpu.moe_gating_topk_softmax(x, k=133, output_softmax=True)
    for row, order, values in zip(x, experts, softmax, strict=True):
        assert torch.equal(order, row.sort(descending=True, stable=True).indices.int())
        assert all(len(values[row == logit].unique()) == 1 for logit in row.unique())


def test_a_number_in_the_payload_of_nan_changes_nothing(isa):
    x = torch.tensor([[0x7FC00000, 0x7F800001, -1, 0x3F800000]], dtype=torch.int32).view(torch.float32)
    y, experts, _, softmax = anynpu.moe_gating_topk_softmax(x, k=4, output_softmax=True)
    assert experts.tolist() == [[0, 1, 2, 3]]
    assert y.isnan().all() and softmax.isnan().all()
    assert anynpu.moe_gating_topk_softmax(x.flip(1), k=3, renorm=1)[1].tolist() == [[1, 2, 3]]


def test_puts_logits_that_are_no_numbers_first(isa):
    x = torch.tensor([[1.0, torch.nan, 2.0, torch.nan]])
    for function in (anynpu.moe_gating_topk_softmax, anynpu.reference.moe_gating_topk_softmax):
        assert function(x, k=4, renorm=1)[1].tolist() == [[1, 3, 2, 0]]
