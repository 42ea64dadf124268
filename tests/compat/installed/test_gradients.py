# SPDX-License-Identifier: Apache-2.0
"""Gradients through published operators whose kernels have none."""

from __future__ import annotations

import pytest
import torch
import torch_npu
from npu_tensors import integers, reals

CALLS = pytest.mark.parametrize("compiled", [False, True])
LENGTHS = {"actual_seq_lengths_kv": [3, 5], "num_heads": 4, "input_layout": "BNSD", "scale": 0.25}


def gradients(function, inputs, compiled):
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    torch.compiler.reset()
    run = torch.compile(function, backend="aot_eager", fullgraph=True) if compiled else function
    run(*leaves).square().sum().backward()
    return [leaf.grad for leaf in leaves]


def assert_same_gradients(function, formula, inputs, compiled):
    for got, expected in zip(gradients(function, inputs, compiled), gradients(formula, inputs, False), strict=True):
        torch.testing.assert_close(got, expected)


@CALLS
def test_swiglu(compiled):
    def formula(x):
        return torch.nn.functional.silu(x[:, :8]) * x[:, 8:]

    assert_same_gradients(torch_npu.npu_swiglu, formula, [reals(5, 16)], compiled)


@CALLS
def test_token_unpermute(compiled):
    experts = integers(0, 3, 4, 2, dtype=torch.int32)

    def there_and_back(tokens, weights):
        rows, index = torch_npu.npu_moe_token_permute(tokens, experts)
        return torch_npu.npu_moe_token_unpermute(rows, index, weights)

    def formula(tokens, weights):
        return tokens * weights.sum(1, keepdim=True)

    assert_same_gradients(there_and_back, formula, [reals(4, 8), reals(4, 2, seed=1)], compiled)


@CALLS
def test_attention_of_lengths(compiled):
    def attend(q, k, v):
        return torch_npu.npu_fused_infer_attention_score(q, k, v, **LENGTHS)[0]

    def formula(q, k, v):
        seen = torch.arange(8) < torch.tensor(LENGTHS["actual_seq_lengths_kv"])[:, None, None, None]
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=LENGTHS["scale"])

    tensors = [reals(2, 4, 8, 16, seed=seed) for seed in range(3)]
    assert_same_gradients(attend, formula, tensors, compiled)
    assert_same_gradients(attend, formula, tensors, False)  # what was traced leaves nothing behind


@CALLS
def test_attention_with_positions_and_sinks(compiled):
    def attend(q, k, v, pse, sink):
        return torch_npu.npu_fusion_attention(q, k, v, 4, "BNSD", pse=pse, sink=sink, scale=0.25)[0]

    def formula(q, k, v, pse, sink):
        scores = torch.cat([0.25 * (q @ k.mT + pse), sink.view(1, 4, 1, 1).expand(2, 4, 8, 1)], -1)
        return scores.softmax(-1)[..., :-1] @ v

    tensors = [reals(2, 4, 8, 16, seed=seed) for seed in range(3)]
    assert_same_gradients(attend, formula, [*tensors, reals(1, 4, 8, 8, seed=3), reals(4, seed=4)], compiled)


def test_wrong_values_are_refused():
    rows = reals(4, 8).requires_grad_()
    with pytest.raises(
        ValueError, match="npu_moe_token_unpermute: moe_finalize_routing: every value of row_idx must be"
    ):
        torch_npu.npu_moe_token_unpermute(rows, torch.tensor([0, 1, 2, -3], dtype=torch.int32))
    query, cache = reals(1, 4, 1, 16).requires_grad_(), reals(2, 8, 64)
    paged = LENGTHS | {
        "actual_seq_lengths_kv": [3],
        "block_size": 8,
        "block_table": integers(2, 3, 1, 1, dtype=torch.int32),
    }
    with pytest.raises(ValueError, match="fused_attention: every value of block_table must be a plane of k"):
        torch_npu.npu_fused_infer_attention_score(query, cache, cache, **paged)


def test_wrong_values_are_refused_where_a_compiled_function_runs():
    def there_and_back(rows, index):
        return torch_npu.npu_moe_token_unpermute(rows, index)

    compiled = torch.compile(there_and_back, backend="aot_eager", fullgraph=True)
    rows, index = reals(4, 8).requires_grad_(), torch.arange(4, dtype=torch.int32)
    assert torch.equal(compiled(rows, index), rows)
    with pytest.raises(
        RuntimeError, match="moe_finalize_routing: every value of row_idx must be a row of expanded_rows"
    ):
        compiled(rows, index - 3)
