# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import case_table
import pytest
import torch

import anynpu
from anynpu.ops.grouped_matmul.reference import error_bound


@case_table.valid_calls("grouped_matmul")
def test_is_within_the_bound_of_the_reference(case, isa, each_thread_count):
    expected, bounds = anynpu.reference.grouped_matmul(**case.args), error_bound(**case.args)
    quantised = case.args["weight"][0].dtype in (torch.int8, torch.int32)
    runs = each_thread_count(lambda: anynpu.grouped_matmul(**case.args))
    for results in runs:
        assert len(results) == len(expected) == len(bounds)
        for result, want, bound, first in zip(results, expected, bounds, runs[0], strict=True):
            assert result.dtype == want.dtype
            assert result.shape == want.shape
            difference = (result.double() - want.double()).abs()
            assert torch.all(difference <= bound), f"worst excess {(difference - bound).max()}"
            if quantised:  # torch's float32 product varies with the number of threads
                assert torch.equal(result, first)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("k, n", [(40, 33), (352, 200), (1000, 1100)])
def test_sums_of_experts_with_few_and_many_rows(k, n, transposed, isa, each_thread_count):
    """All groups in one call; the rows behind the last one are zero."""
    counts = torch.tensor([*range(11), 37])
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-128, 128, (int(counts.sum()) + 2, k), generator=generator, dtype=torch.int8)
    weight = torch.randint(-128, 128, (len(counts), k, n), generator=generator, dtype=torch.int8)
    rows = x[:-2].split(counts.tolist())
    expected = torch.cat([a.double() @ b.double() for a, b in zip(rows, weight, strict=True)] + [torch.zeros(2, n)])
    if transposed:
        weight = weight.transpose(1, 2).contiguous().transpose(1, 2)
    options = {"split_item": 2, "group_type": 0, "group_list_type": 1, "output_dtype": torch.int32}
    for [result] in each_thread_count(lambda: anynpu.grouped_matmul([x], [weight], counts, **options)):
        assert torch.equal(result, expected.int())


def test_the_documented_bias_gives_the_plain_product_of_int4_weights():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-8, 8, (2, 64, 16), dtype=torch.int32, generator=generator)
    x = torch.randint(-4, 4, (5, 64), dtype=torch.int8, generator=generator)
    scale, packed = torch.full((2, 2, 16), 0.25), anynpu.int4_pack(weight)
    [y] = anynpu.grouped_matmul(
        [x],
        [packed],
        torch.tensor([2, 5]),
        scale=[anynpu.pack_scale(scale)],
        bias=[anynpu.make_w4a8_bias(packed, scale)],
        split_item=2,
        group_type=0,
        output_dtype=torch.float16,
    )
    expected = torch.cat([x[:2].double() @ weight[0].double(), x[2:].double() @ weight[1].double()]) * 0.25
    assert torch.equal(y, expected.half())


def test_rows_behind_the_groups_are_zero_and_not_read():
    x, weight = torch.full((4, 8), torch.nan), torch.ones(2, 8, 3)
    x[:2] = 1
    [y] = anynpu.grouped_matmul([x], [weight], torch.tensor([1, 1]), split_item=2, group_type=0, group_list_type=1)
    assert torch.equal(y, torch.tensor([8.0, 8, 0, 0]).unsqueeze(1).expand(4, 3))


def test_neither_autocast_nor_inputs_that_want_gradients_change_results():
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(5, 16, generator=generator), torch.randn(2, 16, 8, generator=generator)

    def call(x):
        return anynpu.grouped_matmul([x], [weight], torch.tensor([2, 4]), split_item=3, group_type=0)[0]

    expected = call(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(call(x), expected)
    assert torch.equal(call(x.requires_grad_()).detach(), expected)
