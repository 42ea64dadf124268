# SPDX-License-Identifier: Apache-2.0
"""The functions of torch_npu that move tokens, against the loops of their documents."""

from __future__ import annotations

import pytest
import torch
import torch_npu

TOKENS, CHOSEN, EXPERTS = 7, 3, 5


def routed(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(TOKENS, 4, generator=generator).to(dtype)
    experts = torch.stack([torch.randperm(EXPERTS, generator=generator)[:CHOSEN] for _ in range(TOKENS)]).int()
    return x, experts


def column_major():
    return torch.arange(TOKENS * CHOSEN, dtype=torch.int32).view(CHOSEN, TOKENS).t()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("active_num", [0, 2, TOKENS, 100])
def test_init_routing(dtype, active_num):
    x, experts = routed(dtype)
    rows, row_idx, sorted_experts = torch_npu.npu_moe_init_routing(x, column_major(), experts, active_num)
    slots = sorted((int(experts[n, j]), n * CHOSEN + j) for n in range(TOKENS) for j in range(CHOSEN))
    assert sorted_experts.dtype == row_idx.dtype == torch.int32
    assert sorted_experts.tolist() == [expert for expert, _ in slots]
    kept = min(active_num, TOKENS) * CHOSEN
    assert torch.equal(rows, torch.stack([x[slot // CHOSEN] for _, slot in slots])[:kept])
    for i, (_, slot) in enumerate(slots):
        assert row_idx[slot % CHOSEN * TOKENS + slot // CHOSEN] == i


def test_init_routing_and_finalize_routing_are_inverse():
    x, experts = routed()
    rows, row_idx, sorted_experts = torch_npu.npu_moe_init_routing(x, column_major(), experts, TOKENS)
    weights = torch.full((TOKENS, CHOSEN), 1 / 4)
    y = torch_npu.npu_moe_finalize_routing(rows, None, None, None, weights, row_idx, experts)
    assert torch.equal(y, x / 4 + x / 4 + x / 4)
    tokens = torch_npu.npu_moe_compute_expert_tokens(sorted_experts, EXPERTS)
    assert tokens.dtype == torch.int32
    assert tokens.tolist() == [int((experts <= expert).sum()) for expert in range(EXPERTS)]


def test_compute_expert_tokens_leaves_foreign_experts_out():
    experts = torch.tensor([0, 0, 2, 3, 3], dtype=torch.int32)
    assert torch_npu.npu_moe_compute_expert_tokens(experts, 3).tolist() == [2, 2, 3]
    assert torch_npu.npu_moe_compute_expert_tokens(experts[:0], 3).tolist() == [0, 0, 0]


@pytest.mark.parametrize("num, rows", [(None, 21), (0, 21), (5, 5), (100, 21), (-4, 17), (-100, 0)])
def test_token_permute(num, rows):
    x, experts = routed()
    permuted, sorted_indices = torch_npu.npu_moe_token_permute(x, experts.long(), num)
    assert permuted.shape == (rows, 4) and sorted_indices.dtype == torch.int32
    for slot, row in enumerate(sorted_indices.tolist()):
        assert row >= rows or torch.equal(permuted[row], x[slot // CHOSEN])
    places = experts.flatten()[sorted_indices.argsort()]
    assert torch.equal(places, experts.flatten().sort().values)


def test_token_permute_and_unpermute_are_inverse():
    x, experts = routed()
    permuted, sorted_indices = torch_npu.npu_moe_token_permute(x, experts[:, 0])
    assert torch.equal(torch_npu.npu_moe_token_unpermute(permuted, sorted_indices), x)
    leaf = x.clone().requires_grad_()
    torch_npu.npu_moe_token_permute(leaf, experts)[0].sum().backward()
    assert torch.equal(leaf.grad, torch.full_like(x, CHOSEN))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("counts_dtype", [torch.int32, torch.int64])
def test_re_routing(dtype, counts_dtype):
    counts = torch.tensor([[2, 0, 1], [1, 3, 0]], dtype=counts_dtype)
    tokens = torch.arange(7.0)[:, None].expand(7, 4).to(dtype)
    scales = torch.arange(7) / 8
    came = [(0, 0), (0, 0), (0, 2), (1, 0), (1, 1), (1, 1), (1, 1)]  # rank and expert of each token
    order = sorted(range(7), key=lambda row: (came[row][1], came[row][0], row))
    rows, row_scales, index, numbers = torch_npu.npu_moe_re_routing(tokens, counts, per_token_scales=scales)
    assert index.dtype == torch.int32 and index.tolist() == order
    assert torch.equal(rows, tokens[order]) and torch.equal(row_scales, scales[order])
    assert numbers.dtype == counts_dtype and numbers.tolist() == [3, 3, 1]
    assert torch.equal(torch_npu.npu_moe_re_routing(tokens, counts)[1], torch.zeros(7))


def test_what_is_refused():
    x, experts = routed()
    slots, counts, half = column_major(), torch.tensor([[3, 4]]), x.half()
    init, permute, re_route = (
        torch_npu.npu_moe_init_routing,
        torch_npu.npu_moe_token_permute,
        torch_npu.npu_moe_re_routing,
    )
    count = torch_npu.npu_moe_compute_expert_tokens
    for call, text in (
        (lambda: init(x[0], slots, experts, 1), "The x should be 2D, got 1D"),
        (lambda: init(x.double(), slots, experts, 1), "x must be float32 or float16 or bfloat16, got float64"),
        (lambda: init(x, slots.long(), experts, 1), "row_idx must be int32, got int64"),
        (lambda: init(x, slots[:, :1], experts, 1), "The shape of expert_idx and row_idx should be same"),
        (lambda: init(x[1:], slots, experts, 1), "x and expert_idx should have the same rows, got 6 and 7"),
        (lambda: init(x, slots, experts, -1), "The active_num must be a non-negative number, got -1"),
        (lambda: init(x, slots + 1, experts, 1), r"row_idx must be in \[0, N \* K - 1\] = \[0, 20\]"),
        (lambda: permute(x[0], experts), "The dims of input tokens should be 2 dimensional, but got 1-dimensional."),
        (lambda: permute(x, experts[None]), "indices should be 2 or 1 dimensional, but got 3-dimensional."),
        (lambda: permute(x, experts[1:]), "tokens and indices should have the same rows, got 7 and 6"),
        (lambda: permute(x, experts.float()), "indices must be int32 or int64, got float32"),
        (lambda: count(experts, 3), "sorted_expert_for_source_row must have 1 axis, got 2"),
        (lambda: count(experts[0], 0), "num_expert must be at least 1, got 0"),
        (lambda: re_route(x, counts), "tokens must be float16 or bfloat16 or int8, got float32"),
        (lambda: re_route(half, counts[0]), "expert_token_num_per_rank must have 2 axes, got 1"),
        (lambda: re_route(half, counts + 1), "expert_token_num_per_rank must be counts that add up to the 7 tokens"),
        (lambda: re_route(half, torch.tensor([[-1, 8]])), "must be counts that add up to the 7 tokens"),
        (lambda: re_route(half, counts, idx_type=1), "expert_token_num_type must be 1 and idx_type 0, got 1 and 1"),
        (lambda: re_route(half, counts, per_token_scales=x[0]), r"per_token_scales must have shape \(A,\) = \(7,\)"),
    ):
        with pytest.raises(RuntimeError, match=text):
            call()
    with pytest.raises(NotImplementedError, match="padded_mode"):
        permute(x, experts, padded_mode=True)


def test_functions_are_captured_in_graphs():
    def moves(x, slots, experts, counts):
        rows, index, sorted_experts = torch_npu.npu_moe_init_routing(x, slots, experts, 5)
        tokens = torch_npu.npu_moe_compute_expert_tokens(sorted_experts, EXPERTS)
        permuted = torch_npu.npu_moe_token_permute(x, experts, 9)
        return rows, index, tokens, *permuted, *torch_npu.npu_moe_re_routing(x.half(), counts)

    arguments = (routed()[0], column_major(), routed()[1], torch.tensor([[3, 0], [2, 2]]))
    compiled = torch.compile(moves, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*arguments), moves(*arguments), rtol=0, atol=0)
