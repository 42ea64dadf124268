# SPDX-License-Identifier: Apache-2.0
"""The functions that serving engines call for paged caches and packed sequences, against softmax in float64."""

from __future__ import annotations

import pytest
import torch
import torch_npu
from attention_formula import (
    CAUSAL,
    DTYPES,
    FUSED,
    HEADS,
    KV_HEADS,
    SCALE,
    D,
    assert_near,
    batched,
    one,
    operands,
    visible,
)
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
    with pytest.raises(RuntimeError, match=r"mask must have shape \(7, 7\) or more, got \(6, 6\)"):
        torch_npu._npu_flash_attention(q, k, v, mask[:6, :6], lengths, SCALE, HEADS, KV_HEADS, out)
    for tensors, lengths_given, text in (
        ((q, k, v), lengths + 1, "seq_len must add up to T = 10, the tokens of query, got 12"),
        ((q, k, v[:9]), lengths, "seq_len must add up to T = 9, the tokens of value, got 10"),
        ((q[:0], k[:0], v[:0]), lengths[:0], "query must have at least one sequence"),
    ):
        with pytest.raises(ValueError, match=text):
            torch_npu._npu_flash_attention(*tensors, mask, lengths_given, SCALE, HEADS, KV_HEADS, out)
    with pytest.raises(NotImplementedError, match="no biases"):
        torch_npu._npu_flash_attention(q, k, v, mask - 0.5, lengths, SCALE, HEADS, KV_HEADS, out)


CHUNKS, CONTEXTS = [4, 1, 6], [7, 20, 6]


def chunks(dtype):
    """Arguments of chunked prefill over caches, what its rows do not see, result and error (T, N, D)."""
    q = [reals(HEADS, n, D, dtype=dtype, seed=i) for i, n in enumerate(CHUNKS)]
    k, v = ([reals(KV_HEADS, n, D, dtype=dtype, seed=10 * s + i) for i, n in enumerate(CONTEXTS)] for s in (1, 2))
    hidden = [~visible(3, *sizes, 0, 0) for sizes in zip(CHUNKS, CONTEXTS, strict=True)]
    results = [one(*tensors) for tensors in zip(q, k, v, hidden, strict=True)]
    expected, _, error, _ = (torch.cat(part, 1).transpose(0, 1) for part in zip(*results, strict=True))
    *stored, table = caches(k, v, 8, 12)
    query = torch.cat(q, 1).transpose(0, 1)
    arguments = {
        "query": query, "key_cache": stored[0], "value_cache": stored[1], "block_table": table,
        "seq_len": torch.tensor(CHUNKS, dtype=torch.int32), "context_lens": torch.tensor(CONTEXTS, dtype=torch.int32),
        "num_kv_heads": KV_HEADS, "num_heads": HEADS, "scale_value": SCALE, "out": torch.empty_like(query),
    }  # fmt: skip
    rows = torch.cat([torch.nn.functional.pad(places, (0, 20 - places.shape[1]), value=True) for places in hidden])
    return arguments, rows, expected, error


@pytest.mark.parametrize("dtype", DTYPES)
def test_chunks_of_prompts_over_caches(dtype):
    arguments, rows, expected, error = chunks(dtype)
    by_rows = torch.zeros(rows.shape, dtype=dtype).masked_fill(rows, 1 if dtype == torch.bfloat16 else -torch.inf)
    for mask in (CAUSAL.to(torch.int8), by_rows):
        torch_npu._npu_paged_attention_splitfuse(**arguments, mask=mask.npu())
        assert_near(arguments["out"], expected, error, dtype)
        arguments["out"].fill_(7)
    torch_npu._npu_flash_attention_qlens(**arguments, mask=CAUSAL[:128, :128].to(dtype))
    assert_near(arguments["out"], expected, error, dtype)


def test_what_chunks_refuse():
    arguments, rows, _, _ = chunks(torch.float32)
    before, mask = arguments["out"].fill_(7).clone(), {"mask": rows}
    for wrong, kind, text in (
        ({"mask": rows[:9]}, ValueError, r"mask must have shape \(11, 20\) or more, got \(9, 20\)"),
        ({"mask": rows * 0.5}, NotImplementedError, "no biases"),
        ({"seq_len": torch.tensor([4, 1, 5]), **mask}, ValueError, "seq_len must add up to the T = 11 tokens of query"),
        ({"seq_len": torch.tensor([4, 7]), **mask}, ValueError, "seq_len has 2 sequences, context_lens 3"),
        ({"query": before[:, :3], **mask}, ValueError, r"query must have shape \(T, 6, D\)"),
        ({"out": before[:3], **mask}, ValueError, "out must have shape"),
    ):
        with pytest.raises(kind, match=text):
            torch_npu._npu_paged_attention_splitfuse(**{**arguments, **wrong})
    with pytest.raises(ValueError, match=r"mask must have shape \(128, 128\) or \(2048, 2048\), got \(11, 20\)"):
        torch_npu._npu_flash_attention_qlens(**arguments, mask=rows)
    assert torch.equal(arguments["out"], before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_latent_caches(dtype):
    q, k, _ = operands(3, 1, 20, dtype)
    lengths, size = [3, 20, 8], 12
    key = [x[:, :n] for x, n in zip(k, lengths, strict=True)]
    expected, _, error, _ = batched(q, key, [x[..., :size] for x in key])
    cache, _, table = caches(key, key, 8, 12)
    arguments = {
        "query": q[:, :, 0], "key_cache": cache, "num_kv_heads": KV_HEADS, "num_heads": HEADS, "scale_value": SCALE,
        "block_table": table, "context_lens": torch.tensor(lengths, dtype=torch.int32), "mla_vheadsize": size,
    }  # fmt: skip
    out = torch.empty(3, HEADS, size, dtype=dtype).npu()
    torch_npu._npu_paged_attention_mla(**arguments, out=out)
    assert_near(out, expected[:, :, 0], error[:, :, 0], dtype)
    with pytest.raises(ValueError, match=r"mla_vheadsize must be in \[1, 16\], the size of key_cache's heads, got 17"):
        torch_npu._npu_paged_attention_mla(**{**arguments, "mla_vheadsize": 17}, out=out)
