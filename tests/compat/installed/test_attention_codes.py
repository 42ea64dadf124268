# SPDX-License-Identifier: Apache-2.0
"""Attention of torch_npu to int8 and int4 keys and values, in every published mode."""

from __future__ import annotations

import pytest
import torch
import torch_npu
from attention_formula import HEADS, KV_HEADS, SCALE, D, assert_near, batched
from npu_tensors import codes, reals

MODES = "key_antiquant_mode", "value_antiquant_mode"
LENGTHS, BLOCK, BLOCK_TABLE = [13, 30], 8, torch.tensor([[5, 1, 9, 9], [0, 3, 2, 7]], dtype=torch.int32)
FACTORS = {  # shapes of scales by mode; the last two are paged
    0: (1, KV_HEADS, 1, D), 1: (2, 30), 2: (KV_HEADS,), 3: (2, KV_HEADS, 30), 4: (10, BLOCK), 5: (10, KV_HEADS, BLOCK),
}  # fmt: skip


def factors(shape, seed, dtype=torch.float32):
    """Scales that are powers of two and small whole offsets: float32 holds every key and value."""
    exponents = torch.randint(-9, -5, shape, generator=torch.Generator().manual_seed(seed))
    offsets = torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed + 1))
    return (2.0**exponents).to(dtype).npu(), offsets.to(dtype).npu()


def blocks_of(cache, b):
    """Blocks (blocks, N, BLOCK, ...) of a sequence in order: (N, S, ...)."""
    return torch.cat([cache[block] for block in BLOCK_TABLE[b, : -(-LENGTHS[b] // BLOCK)].tolist()], 1)[:, : LENGTHS[b]]


def packed(values):
    """int4 along the last axis, eight a word."""
    words = torch_npu.npu_convert_weight_to_int4pack(values.flatten(0, -2).int().npu())
    return words.unflatten(0, values.shape[:-1])


def spread(values, mode, b):
    """The factors of sequence b for each (N, S, D), spelled out."""
    if mode == 0:
        return values.reshape(KV_HEADS, 1, D).expand(-1, LENGTHS[b], -1)
    if mode == 2:
        return values.reshape(KV_HEADS, 1, 1).expand(-1, LENGTHS[b], D)
    if mode in (1, 3):
        rows = values[b].expand(KV_HEADS, -1) if mode == 1 else values[b]
        return rows[:, : LENGTHS[b], None].expand(-1, -1, D)
    by_head = values.unsqueeze(1).expand(-1, KV_HEADS, -1) if mode == 4 else values
    return blocks_of(by_head, b)[..., None].expand(-1, -1, D)


@pytest.mark.parametrize("modes", [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (0, 1)])
@pytest.mark.parametrize("rows, with_offset", [(1, True), (4, False)])
def test_int8_keys_and_values_with_every_mode(modes, rows, with_offset):
    query, caches = reals(2, HEADS, rows, D), [codes(10, KV_HEADS, BLOCK, D, seed=i) for i in (1, 2)]
    pairs = [factors(FACTORS[mode], seed=3 + i) for i, mode in enumerate(modes)]
    if not with_offset:
        pairs = [(scale, torch.zeros_like(offset)) for scale, offset in pairs]
    exact = [
        [(blocks_of(cache, b).double() + spread(offset, mode, b)) * spread(scale, mode, b) for b in range(2)]
        for cache, (scale, offset), mode in zip(caches, pairs, modes, strict=True)
    ]
    expected, lse, error, lse_error = batched(list(query), *exact)
    given = [part if i == 0 or with_offset else None for pair in pairs for i, part in enumerate(pair)]
    names = "key_antiquant_scale", "key_antiquant_offset", "value_antiquant_scale", "value_antiquant_offset"
    shared = {"block_table": BLOCK_TABLE, "block_size": BLOCK, "input_layout": "BNSD", "num_key_value_heads": KV_HEADS}
    result, got = torch_npu.npu_fused_infer_attention_score(
        query, *caches, num_heads=HEADS, scale=SCALE, actual_seq_lengths_kv=LENGTHS, softmax_lse_flag=True,
        **dict(zip(names, given, strict=True)), **dict(zip(MODES, modes, strict=True)), **shared,
    )  # fmt: skip
    assert_near(result, expected, error, torch.float32)
    assert_near(got, lse, lse_error, torch.float32)
    renamed = "dequant_scale_key", "dequant_offset_key", "dequant_scale_value", "dequant_offset_value"
    for with_lse in (True, False):  # without it codes may be multiplied as they are
        again, _ = torch_npu.npu_fused_infer_attention_score_v2(
            query, *caches, num_query_heads=HEADS, softmax_scale=SCALE, actual_seq_kvlen=LENGTHS,
            **dict(zip(renamed, given, strict=True)), key_quant_mode=modes[0], value_quant_mode=modes[1],
            return_softmax_lse=with_lse, **shared,
        )  # fmt: skip
        assert torch.equal(again, result) or not with_lse
        assert_near(again, expected, error, torch.float32)


@pytest.mark.parametrize("modes", [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (0, 1)])
@pytest.mark.parametrize("rows", [1, 4])
def test_int4_keys_and_values_are_the_same_in_int8(modes, rows):
    query = reals(2, HEADS, rows, D)
    caches = [codes(10, KV_HEADS, BLOCK, D, seed=i) // 16 for i in (1, 2)]
    words = [packed(x) for x in caches]
    pairs = [factors(FACTORS[mode], seed=3 + i) for i, mode in enumerate(modes)]
    names = "key_antiquant_scale", "key_antiquant_offset", "value_antiquant_scale", "value_antiquant_offset"
    given = dict(zip(names, [part for pair in pairs for part in pair], strict=True))
    options = {
        "block_table": BLOCK_TABLE, "block_size": BLOCK, "input_layout": "BNSD", "num_key_value_heads": KV_HEADS,
        "num_heads": HEADS, "scale": SCALE, "actual_seq_lengths_kv": LENGTHS, "softmax_lse_flag": True,
        **given, **dict(zip(MODES, modes, strict=True)),
    }  # fmt: skip
    results, again = (torch_npu.npu_fused_infer_attention_score(query, *kv, **options) for kv in (caches, words))
    assert all(map(torch.equal, results, again))  # with the log-sum-exp int8 becomes float32 too
    if rows == 1 and modes == (0, 0):
        stacked = [torch.stack([pair[i] for pair in pairs]) for i in range(2)]
        incre = torch_npu.npu_incre_flash_attention(
            query, *words, antiquant_scale=stacked[0], antiquant_offset=stacked[1], block_table=BLOCK_TABLE,
            block_size=BLOCK, actual_seq_lengths=LENGTHS, num_heads=HEADS, num_key_value_heads=KV_HEADS,
            input_layout="BNSD", scale_value=SCALE,
        )  # fmt: skip
        assert torch.equal(incre, results[0])


def test_int4_keys_and_values_without_blocks():
    """(B, S, H / 8) words, one scale; in graphs and on the device meta."""
    query, tensors = reals(2, 1, HEADS * D), [codes(2, 9, KV_HEADS * D, seed=i) // 16 for i in (1, 2)]
    words = [packed(x) for x in tensors]

    def attend(query, key, value, scale):
        return torch_npu.npu_fused_infer_attention_score(
            query, key, value, num_heads=HEADS, num_key_value_heads=KV_HEADS, scale=SCALE, input_layout="BSH",
            antiquant_scale=scale, softmax_lse_flag=True,
        )  # fmt: skip

    scale = torch.tensor([0.25, 0.5]).npu()
    expected = attend(query, *tensors, scale)
    torch.compiler.reset()
    for function in (attend, torch.compile(attend, fullgraph=True, backend="aot_eager")):
        assert all(map(torch.equal, function(query, *words, scale), expected))
    shapes = [x.shape for x in attend(*[x.to("meta") for x in (query, *words, scale)])]
    assert shapes == [x.shape for x in expected]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(KV_HEADS, 1, D), (1, KV_HEADS * D), (KV_HEADS, D), (1,)])
def test_int8_caches_as_serving_engines_keep_them(dtype, shape):
    """5-D FRACTAL_NZ caches, one token a sequence, a scale for each channel of each head."""
    query = reals(2, HEADS, 1, 32, dtype=dtype)
    width = {D: 32, KV_HEADS * D: KV_HEADS * 32}
    shape = tuple(width.get(size, size) for size in shape)
    caches, scales = [codes(10, KV_HEADS, BLOCK, 32, seed=i) for i in (1, 2)], [factors(shape, i)[0] for i in (3, 5)]
    exact = [
        [blocks_of(cache, b).double() * scale.reshape(-1, 1, scale.numel() // KV_HEADS or 1) for b in range(2)]
        for cache, scale in zip(caches, scales, strict=True)
    ]
    expected, _, error, _ = batched(list(query), *exact)
    nz = [cache.unflatten(-1, (1, 32)).transpose(2, 3).contiguous() for cache in caches]
    result, _ = torch_npu.npu_fused_infer_attention_score(
        query, *nz, key_antiquant_scale=scales[0].to(dtype), value_antiquant_scale=scales[1].to(dtype),
        block_table=BLOCK_TABLE, actual_seq_lengths_kv=LENGTHS, num_heads=HEADS, num_key_value_heads=KV_HEADS,
        input_layout="BNSD", scale=SCALE, block_size=BLOCK, antiquant_mode=0, key_antiquant_mode=0,
        value_antiquant_mode=0, inner_precise=1, sparse_mode=0,
    )  # fmt: skip
    assert_near(result, expected, 2 * error, dtype)  # D of the bound is 16


@pytest.mark.parametrize("shape, mode", [((2,), 0), ((2, KV_HEADS, 1, D), 0), ((2, KV_HEADS * D), 0), ((2, 2, 9), 1)])
def test_scales_of_keys_and_values_in_one_tensor(shape, mode):
    query, tensors = reals(2, HEADS, 1, D), [codes(2, KV_HEADS, 9, D, seed=i) for i in (1, 2)]
    scale, offset = factors(shape, seed=3)
    exact = []
    for i, tensor in enumerate(tensors):
        if mode == 1:
            spread_out = [part[i][:, None, :, None] for part in (scale, offset)]
        else:
            spread_out = [part[i].reshape(-1, 1, part[i].numel() // KV_HEADS or 1) for part in (scale, offset)]
        exact.append(list((tensor.double() + spread_out[1]) * spread_out[0]))
    expected, _, error, _ = batched(list(query), *exact)
    options = {"antiquant_scale": scale, "antiquant_offset": offset, "num_heads": HEADS, "input_layout": "BNSD"}
    options["num_key_value_heads"] = KV_HEADS
    result, _ = torch_npu.npu_fused_infer_attention_score(query, *tensors, antiquant_mode=mode, scale=SCALE, **options)
    assert_near(result, expected, error, torch.float32)
    if mode == 0:
        again = torch_npu.npu_incre_flash_attention(query, *tensors, scale_value=SCALE, **options)
        assert torch.equal(again, result)
