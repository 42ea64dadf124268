# SPDX-License-Identifier: Apache-2.0
"""The functions that serving engines call for paged caches and packed sequences, against softmax in float64."""

from __future__ import annotations

import pytest
import torch
import torch_npu
from attention_formula import DTYPES, FUSED, HEADS, KV_HEADS, SCALE, D, assert_near, batched, one, operands
from npu_tensors import reals


def caches(key, value, block_size, blocks):
    """Sequences (N, S, D) in caches (blocks, block_size, N, D), blocks in another order, and their table."""
    most = -(-max(x.shape[1] for x in key) // block_size)
    order = torch.randperm(blocks, generator=torch.Generator().manual_seed(7)).int()[: len(key) * most]
    table, filled = order.view(len(key), most).npu(), []
    for sequences in (key, value):
        cache = torch.full((blocks, block_size, KV_HEADS, sequences[0].shape[-1]), torch.nan, dtype=sequences[0].dtype)
        for row, x in zip(table, sequences, strict=True):
            for token in range(x.shape[1]):
                cache[row[token // block_size], token % block_size] = x[:, token]
        filled.append(cache.npu())
    return *filled, table


@pytest.mark.parametrize("dtype", DTYPES)
def test_paged_attention(dtype):
    q, k, v = operands(3, 1, 20, dtype)
    lengths = [3, 20, 8]
    key, value = ([x[:, :n] for x, n in zip(tensor, lengths, strict=True)] for tensor in (k, v))
    expected, _, error, _ = batched(q, key, value)
    *stored, table = caches(key, value, 8, 12)
    arguments = {
        "query": q[:, :, 0], "key_cache": stored[0], "value_cache": stored[1], "num_kv_heads": KV_HEADS,
        "num_heads": HEADS, "scale_value": SCALE, "block_table": table, "out": torch.empty_like(q[:, :, 0]),
        "context_lens": torch.tensor(lengths, dtype=torch.int32),
    }  # fmt: skip
    workspace = torch_npu._npu_paged_attention_get_workspace(**arguments)
    torch_npu._npu_paged_attention(**arguments, workspace=workspace)
    assert_near(arguments["out"], expected[:, :, 0], error[:, :, 0], dtype)
    tiles = [x.permute(0, 2, 1, 3).unflatten(-1, (-1, 4)).transpose(2, 3).contiguous() for x in stored]
    y, _ = torch_npu.npu_fused_infer_attention_score(
        q, *tiles, input_layout="BNSD", block_table=table, block_size=8, actual_seq_lengths_kv=lengths, **FUSED
    )
    assert torch.equal(y[:, :, 0], arguments["out"])
    before = arguments["out"].clone()
    for wrong, text in (
        ({"out": before[:2]}, "out must have shape"),
        ({"block_table": table + 12}, r"block_table must be in \[0, 12\) where rows are used"),
        ({"context_lens": torch.tensor([3, 25, 8])}, r"context_lens must be in \[0, 24\], got 25"),
    ):
        with pytest.raises(RuntimeError, match=text):
            torch_npu._npu_paged_attention(**{**arguments, **wrong})
        assert torch.equal(arguments["out"], before)


def test_paged_cache_load():
    k, v = operands(2, 1, 20)[1:]
    *stored, table = caches(k, v[..., :5], 8, 12)
    lengths, starts = torch.tensor([4, 9], dtype=torch.int32), torch.tensor([8, 11], dtype=torch.int32)
    key, value = torch.zeros(13, KV_HEADS, D).npu(), torch.zeros(13, KV_HEADS, 5).npu()
    torch_npu.atb.npu_paged_cache_load(*stored, table, lengths, seq_starts=starts, key=key, value=value)
    for loaded, x in ((key, k), (value, v[..., :5])):
        assert torch.equal(loaded, torch.cat([x[0, :, 8:12], x[1, :, 11:20]], 1).transpose(0, 1))
    torch_npu.atb.npu_paged_cache_load(*stored, table, lengths, key=key, value=value)
    assert torch.equal(key, torch.cat([k[0, :, :4], k[1, :, :9]], 1).transpose(0, 1))
    with pytest.raises(RuntimeError, match=r"seq_starts \+ context_lens must be at most 24, got 29"):
        torch_npu.atb.npu_paged_cache_load(*stored, table, lengths, seq_starts=starts + 9, key=key, value=value)
    with pytest.raises(RuntimeError, match=r"value must have shape \(13, 2, 5\)"):
        torch_npu.atb.npu_paged_cache_load(*stored, table, lengths, key=key, value=key)
    torch_npu.npu_gather_pa_kv_cache(*stored, table, lengths, seq_offset=starts, key=key, value=value)
    assert torch.equal(key, torch.cat([k[0, :, 8:12], k[1, :, 11:20]], 1).transpose(0, 1))
    with pytest.raises(NotImplementedError, match="is_seq_lens_cumsum is for modes that anynpu does not implement"):
        torch_npu.npu_gather_pa_kv_cache(*stored, table, lengths, key, value, is_seq_lens_cumsum=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_flash_attention_of_packed_sequences(dtype):
    lengths = [3, 7]
    q, k, v = (reals(10, heads, D, dtype=dtype, seed=heads) for heads in (HEADS, KV_HEADS, KV_HEADS))
    out = torch.empty_like(q)
    torch_npu._npu_flash_attention_unpad(
        query=q, key=k, value=v, seq_len=torch.tensor(lengths, dtype=torch.int32), scale_value=SCALE, num_heads=HEADS,
        num_kv_heads=KV_HEADS, out=out,
    )  # fmt: skip
    parts = [one(*(x[rows].transpose(0, 1) for x in (q, k, v))) for rows in (slice(0, 3), slice(3, 10))]
    expected, _, error, _ = (torch.cat(part, 1).transpose(0, 1) for part in zip(*parts, strict=True))
    assert_near(out, expected, error, dtype)
    with pytest.raises(RuntimeError, match="seq_len must be cumulative and end with T = 10"):
        torch_npu._npu_flash_attention_unpad(q, k, v, torch.tensor([3]), SCALE, HEADS, KV_HEADS, out)


@pytest.mark.parametrize("value", [1, -torch.inf])
def test_flash_attention_of_packed_sequences_with_a_mask(value):
    lengths = torch.tensor([3, 7], dtype=torch.int32)
    q, k, v = (reals(10, heads, D, dtype=torch.float16, seed=heads) for heads in (HEADS, KV_HEADS, KV_HEADS))
    later = torch.ones(9, 9).triu(1).bool()
    mask, out = torch.zeros(9, 9, dtype=torch.float16).masked_fill(later, value).npu(), torch.empty_like(q)
    torch_npu._npu_flash_attention(q, k, v, mask, lengths, SCALE, HEADS, KV_HEADS, out)
    parts = [
        one(*(x[start : start + size].transpose(0, 1) for x in (q, k, v)), later[:size, :size])
        for start, size in ((0, 3), (3, 7))
    ]
    expected, _, error, _ = (torch.cat(part, 1).transpose(0, 1) for part in zip(*parts, strict=True))
    assert_near(out, expected, error, torch.float16)
    with pytest.raises(RuntimeError, match=r"mask must have shape \(S, S\), S >= 7, got \(6, 6\)"):
        torch_npu._npu_flash_attention(q, k, v, mask[:6, :6], lengths, SCALE, HEADS, KV_HEADS, out)
    with pytest.raises(RuntimeError, match="seq_len must add up to T = 10, got 12"):
        torch_npu._npu_flash_attention(q, k, v, mask, lengths + 1, SCALE, HEADS, KV_HEADS, out)
    with pytest.raises(NotImplementedError, match="no biases"):
        torch_npu._npu_flash_attention(q, k, v, mask - 0.5, lengths, SCALE, HEADS, KV_HEADS, out)
