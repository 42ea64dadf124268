# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import case_table
import gpu_cases
import torch

import anynpu
from anynpu.ops.moe_finalize_routing.reference import error_bound


@case_table.valid_calls("moe_finalize_routing")
def test_is_as_close_to_the_reference_as_float32_allows(case, isa, each_thread_count):
    expected = anynpu.reference.moe_finalize_routing(**case.args)
    first, *others = each_thread_count(lambda: anynpu.moe_finalize_routing(**case.args))
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=0, equal_nan=True)
    gpu_cases.assert_within(first, expected, error_bound(**case.args))


def test_undoes_init_routing():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(11, 8, generator=generator)
    experts = torch.stack([torch.randperm(5, generator=generator)[:2] for _ in range(11)]).int()
    weights = torch.rand(11, 2, generator=generator)
    rows, index, _, _ = anynpu.moe_init_routing(x, experts, expert_num=5)
    y = anynpu.moe_finalize_routing(rows, None, None, None, weights, index, drop_pad_mode=2)
    torch.testing.assert_close(y, x * weights.sum(1, keepdim=True))
