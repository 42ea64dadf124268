# SPDX-License-Identifier: Apache-2.0
"""Attention that repeats, against attention whose arguments are worked out anew, as a watched call is."""

from __future__ import annotations

import pytest
import torch
import torch_npu
from attention_formula import CAUSAL
from npu_tensors import codes, halves, integers
from torch.utils._python_dispatch import TorchDispatchMode

from anynpu.compat.attention_calls import Call

B, N, KV, S, D, BLOCK = 2, 4, 2, 6, 16, 4


class Watching(TorchDispatchMode):
    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        return operator(*args, **(kwargs or {}))


def worked_out(function, *args, **options):
    with Watching():
        return function(*args, **options)


@pytest.fixture
def calls(monkeypatch):
    """The calls that arguments were worked out for."""
    made, run = [], Call.__call__
    monkeypatch.setattr(Call, "__call__", lambda self: made.append(self) or run(self))
    return made


def tensors(rows, columns, seed, kv=halves):
    return halves(B, N, rows, D, seed=seed), *(kv(B, KV, columns, D, seed=seed + i) for i in (1, 2))


def blocks(seed):
    table = torch.tensor([[3, 1], [0, 2]], dtype=torch.int32).npu()
    cache = [halves(4, BLOCK, KV * D, seed=seed + i) for i in (1, 2)]
    return halves(B, 1, N * D, seed=seed), *cache, {"block_table": table.roll(seed, 0), "block_size": BLOCK}


def case(name, seed):
    """Arguments of which data alone depend on the seed."""
    options = {"num_heads": N, "num_key_value_heads": KV, "input_layout": "BNSD", "scale": 0.25}
    if name == "lengths":
        return tensors(1, S, seed), {**options, "actual_seq_lengths_kv": [3, 5], "softmax_lse_flag": True}
    if name == "causal":
        return tensors(S, S, seed), {**options, "atten_mask": CAUSAL.npu(), "sparse_mode": 3}
    if name == "mask":
        mask = integers(0, 2, B, S, S, seed=seed).bool()
        return tensors(S, S, seed), {**options, "atten_mask": mask, "input_layout": "BNSD_BSND"}
    if name == "rope":
        rope = {"query_rope": halves(B, N, 1, 8, seed=seed + 5), "key_rope": halves(B, KV, S, 8, seed=seed + 6)}
        return tensors(1, S, seed), {**options, **rope}
    if name == "codes":
        scales = {f"{each}_antiquant_scale": halves(KV, D, seed=seed).abs() for each in ("key", "value")}
        return tensors(1, S, seed, codes), {**options, **scales}
    *query_and_caches, table = blocks(seed)
    return query_and_caches, {**options, **table, "input_layout": "BSH", "actual_seq_lengths_kv": [7, 4]}


@pytest.mark.parametrize("name", ["lengths", "causal", "mask", "rope", "codes", "blocks"])
def test_a_repeated_call_gives_the_same(name, calls):
    for seed in range(1, 6):
        args, options = case(name, seed)
        results = torch_npu.npu_fused_infer_attention_score(*args, **options)
        assert len(calls) == min(seed, 2), "only the first two are worked out"
        expected = worked_out(torch_npu.npu_fused_infer_attention_score, *args, **options)
        calls.pop()
        for result, other in zip(results, expected, strict=True):
            assert torch.equal(result, other)
            assert result.stride() == other.stride()


def test_the_second_version(calls):
    options = {"num_query_heads": N, "num_key_value_heads": KV, "input_layout": "BNSD", "softmax_scale": 0.25}
    for seed in range(4):
        args, sink = tensors(1, S, seed), halves(N, seed=seed)
        (result, _) = torch_npu.npu_fused_infer_attention_score_v2(*args, learnable_sink=sink, **options)
        assert len(calls) == min(seed + 1, 2)
        expected = worked_out(torch_npu.npu_fused_infer_attention_score_v2, *args, learnable_sink=sink, **options)[0]
        calls.pop()
        assert torch.equal(result, expected)


def attend(*args, **options):
    options = {"num_heads": N, "num_key_value_heads": KV, "input_layout": "BNSD", **options}
    return torch_npu.npu_fused_infer_attention_score(*args, **options)[0]


def test_other_lengths_are_other_calls():
    args = tensors(1, S, 0)
    several = [3, 5], [3, 5], [3, 5], [2, 5], [3, 5], torch.tensor([3, 5]), torch.tensor([6, 1]), torch.tensor([3, 5])
    for lengths in several:
        result = attend(*args, actual_seq_lengths_kv=lengths)
        assert torch.equal(result, worked_out(attend, *args, actual_seq_lengths_kv=lengths))


def test_keys_that_are_the_values_and_keys_that_are_not():
    query, key, value = tensors(1, S, 0)
    pairs = (key, key), (key, key.view(key.shape)), (key, value), (value, value)
    for given in (*pairs, *pairs, *pairs):
        assert torch.equal(attend(query, *given), worked_out(attend, query, *given))


def test_a_repeated_call_with_wrong_arguments_is_refused():
    args = tensors(1, S, 0)
    for _ in range(3):
        attend(*args, actual_seq_lengths_kv=[3, 5])
        with pytest.raises(ValueError, match=r"actual_seq_lengths_kv must be in \[0, 6\], got 7"):
            attend(*args, actual_seq_lengths_kv=[3, 7])
        with pytest.raises(TypeError, match="key must be float16, got float32"):
            attend(args[0], args[1].float(), args[2], actual_seq_lengths_kv=[3, 5])


@pytest.mark.parametrize("latent", [False, True])
def test_paged_attention_in_place(latent, calls):
    for seed in range(4):
        query, *caches = halves(B, N, D, seed=seed), *(halves(4, BLOCK, KV, D, seed=seed + i) for i in (1, 2))
        table = torch.tensor([[3, 1], [0, 2]], dtype=torch.int32).roll(seed, 0).npu()
        out, expected = (torch.empty_like(query[..., :9] if latent else query) for _ in range(2))
        lengths = torch.tensor([7, 4], dtype=torch.int32)
        tables = {"num_kv_heads": KV, "num_heads": N, "scale_value": 0.25, "block_table": table}
        if latent:
            function, tables["mla_vheadsize"] = torch_npu._npu_paged_attention_mla, 9
            caches = caches[:1]
        else:
            function = torch_npu._npu_paged_attention
        function(query, *caches, **tables, context_lens=lengths, out=out)
        assert len(calls) == min(seed + 1, 2), "only the first two are worked out"
        worked_out(function, query, *caches, **tables, context_lens=lengths, out=expected)
        calls.pop()
        assert torch.equal(out, expected)

    function(query, *caches, **tables, context_lens=lengths - 1, out=out)  # other lengths
    worked_out(function, query, *caches, **tables, context_lens=lengths - 1, out=expected)
    assert torch.equal(out, expected)
