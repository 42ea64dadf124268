# SPDX-License-Identifier: Apache-2.0
"""Attention of torch_npu to sequences at the right ends of their rows."""

from __future__ import annotations

import pytest
import torch
import torch_npu
from attention_formula import CAUSAL, FUSED, KV_HEADS, PROMPT, operands
from npu_tensors import codes

ROWS, COLUMNS, BEHIND = [3, 5], [4, 9], {"query": 1, "kv": 2}
Q, K, V = operands(2, 7, 13)


def moved(x, lengths, behind):
    """(B, N, S, D) with the first tokens of each sequence at the right end but for ``behind`` rows, NaN before them."""
    out = torch.full_like(x, torch.nan) if x.is_floating_point() else torch.full_like(x, 99)
    for b, length in enumerate(lengths):
        end = x.shape[2] - behind
        out[b, :, end - length : end] = x[b, :, :length]
    return out


def sizes(**values):
    return {f"{name}_padding_size": torch.tensor([value]).npu() for name, value in values.items()}


@pytest.mark.parametrize(
    "mask",
    [
        {},
        {"atten_mask": CAUSAL, "sparse_mode": 2},
        {"atten_mask": CAUSAL, "sparse_mode": 3},
        {"atten_mask": CAUSAL, "sparse_mode": 4, "pre_tokens": 2, "next_tokens": 1},
    ],
)
@pytest.mark.parametrize("queries", [True, False])
def test_padded_sequences_are_the_same_elsewhere(mask, queries):
    options = {"input_layout": "BNSD", "actual_seq_lengths_kv": COLUMNS, "softmax_lse_flag": True, **mask, **FUSED}
    options |= {"actual_seq_lengths": ROWS} if queries else {}
    expected, lse = torch_npu.npu_fused_infer_attention_score(Q, K, V, **options)
    paddings = sizes(**(BEHIND if queries else {"kv": 2}))
    query = moved(Q, ROWS, 1).nan_to_num(7) if queries else Q
    key, value = (moved(x, COLUMNS, 2).nan_to_num(7) for x in (K, V))
    result, sums = torch_npu.npu_fused_infer_attention_score(query, key, value, **paddings, **options)
    if queries:
        expected, lse = (moved(x, ROWS, 1) for x in (expected, lse))
        assert not result[expected.isnan()].any()
    torch.testing.assert_close(result, expected.nan_to_num(0), rtol=1e-5, atol=1e-6)
    known = ~lse.isnan()
    torch.testing.assert_close(sums[known], lse[known], rtol=1e-5, atol=1e-6)


def test_decoding_over_padded_int8_caches_in_graphs():
    scale = torch.tensor([2.0**-6, 2.0**-5]).npu()
    caches = [codes(2, KV_HEADS, 13, 16, seed=i) for i in (1, 2)]
    options = {"input_layout": "BNSD", "actual_seq_lengths": COLUMNS, "antiquant_scale": scale, **PROMPT}
    expected = torch_npu.npu_incre_flash_attention(Q[:, :, :1], *caches, **options)

    def step(query, key, value, padding):
        return torch_npu.npu_incre_flash_attention(query, key, value, kv_padding_size=padding, **options)

    arguments = Q[:, :, :1], *(moved(x, COLUMNS, 2) for x in caches), sizes(kv=2)["kv_padding_size"]
    torch.compiler.reset()
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        torch.testing.assert_close(function(*arguments), expected, rtol=1e-5, atol=1e-5)


def test_masks_and_negative_sizes():
    """Places of a mask are those of rows and columns; a size below 0 is 0."""
    mask = torch.rand(7, 13, generator=torch.Generator().manual_seed(0)) > 0.6
    options = {"input_layout": "BNSD", "actual_seq_lengths_kv": COLUMNS, "atten_mask": mask.npu(), **FUSED}
    result, _ = torch_npu.npu_fused_infer_attention_score(Q, K, V, **sizes(kv=-3), **options)
    for b, length in enumerate(COLUMNS):
        hidden = mask.clone()
        hidden[:, : 13 - length] = True
        whole = {**options, "atten_mask": hidden.npu(), "actual_seq_lengths_kv": None}
        expected, _ = torch_npu.npu_fused_infer_attention_score(Q[b : b + 1], K[b : b + 1], V[b : b + 1], **whole)
        torch.testing.assert_close(result[b : b + 1], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "options, kind, text",
    [
        (sizes(kv=1), ValueError, "kv_padding_size needs the lengths of its sequences"),
        ({"kv_padding_size": torch.ones(2).long(), "actual_seq_lengths_kv": [3]}, ValueError, "must have 1 element"),
        ({"kv_padding_size": torch.ones(1), "actual_seq_lengths_kv": [3]}, TypeError, "must be int64 or int32, got"),
        (
            {**sizes(kv=1), "actual_seq_lengths_kv": [3], "atten_mask": torch.zeros(7, 9).bool()},
            ValueError,
            r"atten_mask must have all rows and columns, \(7, 13\), beside padding sizes, got \(7, 9\)",
        ),
    ],
)
def test_refusals(options, kind, text):
    with pytest.raises(kind, match=text):
        torch_npu.npu_fused_infer_attention_score(Q, K, V, input_layout="BNSD", **options, **FUSED)


def test_refusal_of_blocks():
    table, cache = torch.zeros(2, 1, dtype=torch.int32), torch.zeros(1, 8, KV_HEADS * 16)
    with pytest.raises(
        NotImplementedError, match="kv_padding_size is not supported by anynpu in layout TND, with a block"
    ):
        torch_npu.npu_fused_infer_attention_score(
            Q, cache, cache, block_table=table, block_size=8, actual_seq_lengths_kv=[3], input_layout="BNSD",
            **sizes(kv=1), **FUSED,
        )  # fmt: skip
