# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import case_table
import torch

import anynpu


@case_table.valid_calls("moe_init_routing")
def test_equals_reference(case, isa, each_thread_count):
    expected = anynpu.reference.moe_init_routing(**case.args)
    for results in each_thread_count(lambda: anynpu.moe_init_routing(**case.args)):
        for result, want in zip(results, expected, strict=True):
            assert result.dtype == want.dtype
            assert torch.equal(result, want)


def test_the_two_indices_are_inverse():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 8, generator=generator)
    experts = torch.randint(0, 6, (20, 4), generator=generator, dtype=torch.int32)
    _, row_of_slot, tokens, _ = anynpu.moe_init_routing(x, experts, expert_num=6)
    rows, slot_of_row, _, _ = anynpu.moe_init_routing(x, experts, expert_num=6, row_idx_type=1)
    assert torch.equal(row_of_slot[slot_of_row.long()], torch.arange(80, dtype=torch.int32))
    assert torch.equal(rows, x[slot_of_row.long() // 4])
    assert tokens[-1] == 80
    assert (experts.flatten()[slot_of_row.long()].diff() >= 0).all()


def test_ranges_together_route_every_slot_once():
    """What expert parallel ranks do: each routes its own experts out of all tokens."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(13, 8, generator=generator)
    experts = torch.randint(0, 8, (13, 2), generator=generator, dtype=torch.int32)
    seen = []
    for first in (0, 3, 5):
        last = {0: 3, 3: 5, 5: 8}[first]
        _, order, tokens, _ = anynpu.moe_init_routing(
            x, experts, expert_num=8, active_expert_range=[first, last], row_idx_type=1, expert_tokens_num_type=1
        )
        seen += order[: int(tokens.sum())].tolist()
    assert sorted(seen) == list(range(26))
    assert seen == anynpu.moe_init_routing(x, experts, expert_num=8, row_idx_type=1)[1].tolist()
