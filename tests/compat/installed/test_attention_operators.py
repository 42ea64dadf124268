# SPDX-License-Identifier: Apache-2.0
"""The attention functions of torch_npu against softmax in float64: layouts, masks, lengths and paged caches."""

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
    PROMPT,
    SCALE,
    UNIT,
    D,
    assert_near,
    batched,
    blocks,
    laid_out,
    one,
    operands,
    visible,
)
from npu_tensors import reals


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["BSH", "BSND", "BNSD", "BNSD_BSND"])
@pytest.mark.parametrize("rows", [1, 5])
def test_layouts_of_fused_and_prompt(dtype, layout, rows):
    q, k, v = operands(3, rows, 9, dtype, value_d=8)
    expected, lse, error, lse_error = batched(q, k, v)
    source, _, target = layout.partition("_")
    given = [laid_out(x, source) for x in (q, k, v)]
    y, y_lse = torch_npu.npu_fused_infer_attention_score(*given, input_layout=layout, softmax_lse_flag=True, **FUSED)
    assert_near(y, laid_out(expected, target or source), laid_out(error, target or source), dtype)
    assert_near(y_lse, lse, lse_error, torch.float32)
    without = torch_npu.npu_fused_infer_attention_score(*given, input_layout=layout, **FUSED)
    assert torch.equal(without[0], y) and torch.equal(without[1], torch.zeros(1))
    assert torch.equal(torch_npu.npu_prompt_flash_attention(*given, input_layout=layout, **PROMPT), y)
    if rows == 1 and target == "":
        assert torch.equal(torch_npu.npu_incre_flash_attention(*given, input_layout=layout, **PROMPT), y)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["BSH", "SBH", "BSND", "BNSD"])
def test_layouts_of_fusion(dtype, layout):
    q, k, v = operands(2, 5, 9, dtype)
    expected, _, error, _ = batched(q, k, v)
    given = [laid_out(x, layout) for x in (q, k, v)]
    y, *rest = torch_npu.npu_fusion_attention(*given, HEADS, layout, scale=SCALE)
    assert_near(y, laid_out(expected, layout), laid_out(error, layout), dtype)
    assert [x.numel() for x in rest[:3]] == [0, 0, 0] and rest[3:] == [0, 0, 0]


@pytest.mark.parametrize("shape", [(2, HEADS, 5, 9), (1, HEADS, 5, 9), (2, HEADS, 1, 9)])
@pytest.mark.parametrize("pse_type", [None, 0, 1])
def test_positions_added_to_the_scores_of_fusion(shape, pse_type):
    given, pse = operands(2, 5, 9), reals(*shape, seed=5)
    fusion = torch_npu.npu_fusion_attention if pse_type is None else torch_npu.npu_fusion_attention_v2
    options = {} if pse_type is None else {"pse_type": pse_type}
    y = fusion(*given, HEADS, "BNSD", pse=pse, scale=SCALE, **options)[0]
    query, key, value = (x.double() for x in given)
    key, value = (x.repeat_interleave(HEADS // KV_HEADS, 1) for x in (key, value))
    products, added = query @ key.mT, pse.double()
    scores = SCALE * products + added if pse_type == 0 else SCALE * (products + added)
    # Scores of up to 5 have 18 roundings, which weights have twice; nine terms are added up.
    error = 200 * UNIT * value.abs().amax()
    assert_near(y, scores.softmax(-1) @ value, error, torch.float32)


def test_sinks_of_fusion():
    given, sink = operands(2, 5, 9), reals(HEADS, seed=5)
    y = torch_npu.npu_fusion_attention(*given, HEADS, "BNSD", scale=SCALE, sink=sink)[0]
    options = {"num_query_heads": HEADS, "num_key_value_heads": KV_HEADS, "input_layout": "BNSD"}
    expected = torch_npu.npu_fused_infer_attention_score_v2(*given, softmax_scale=SCALE, learnable_sink=sink, **options)
    assert torch.equal(y, expected[0])


@pytest.mark.parametrize("mode", range(5))
def test_fusion_without_a_mask_hides_nothing(mode):
    given = operands(2, 5, 9)
    window = {"pre_tockens": 1, "next_tockens": 0, "sparse_mode": mode, "scale": SCALE}
    y = torch_npu.npu_fusion_attention(*given, HEADS, "BNSD", **window)[0]
    assert torch.equal(y, torch_npu.npu_fusion_attention(*given, HEADS, "BNSD", scale=SCALE)[0])


def test_equal_heads_are_the_default():
    q = reals(2, 4, 5, D)
    expected, _, error, _ = batched(q, q, q)
    y, _ = torch_npu.npu_fused_infer_attention_score(q, q, q, num_heads=4, scale=SCALE, input_layout="BNSD")
    assert_near(y, expected, error, torch.float32)
    unscaled = torch_npu.npu_prompt_flash_attention(q * SCALE, q, q, num_heads=4, input_layout="BNSD")
    torch.testing.assert_close(unscaled, y)


@pytest.mark.parametrize("rows, columns", [(5, 5), (4, 9), (9, 4)])
@pytest.mark.parametrize("mode", range(5))
@pytest.mark.parametrize("before, after", [(2, 1), (2147483647, 2147483647), (0, -1), (3, 0)])
@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.int8, torch.uint8])
def test_sparse_modes(rows, columns, mode, before, after, mask_dtype):
    q, k, v = operands(2, rows, columns)
    given = (reals(rows, columns, seed=3) > 0.5) if mode < 2 else CAUSAL
    hidden = ~visible(mode, rows, columns, before, after) | (given if mode < 2 else False)
    expected, lse, error, lse_error = batched(q, k, v, lambda b: hidden)
    mask = {"atten_mask": given.to(mask_dtype), "sparse_mode": mode}
    fused = {**mask, "pre_tokens": before, "next_tokens": after, "input_layout": "BNSD"}
    y, y_lse = torch_npu.npu_fused_infer_attention_score(q, k, v, **fused, softmax_lse_flag=True, **FUSED)
    assert_near(y, expected, error, torch.float32)
    assert_near(y_lse, lse, lse_error, torch.float32)
    assert torch.equal(torch_npu.npu_prompt_flash_attention(q, k, v, **fused, **PROMPT), y)
    mask |= {"pre_tockens": before, "next_tockens": after, "scale": SCALE}
    assert torch.equal(torch_npu.npu_fusion_attention(q, k, v, HEADS, "BNSD", **mask)[0], y)


def test_tokens_before_and_after_need_a_mask_in_mode_0():
    q, k, v = operands(1, 5, 5)
    window = {"pre_tokens": 1, "next_tokens": 0, "input_layout": "BNSD"}
    y = torch_npu.npu_prompt_flash_attention(q, k, v, **window, **PROMPT)
    assert torch.equal(y, torch_npu.npu_prompt_flash_attention(q, k, v, input_layout="BNSD", **PROMPT))


@pytest.mark.parametrize(
    "shape", [(5, 9), (8, 32), (1, 5, 9), (2, 5, 9), (2, 1, 5, 9), (1, 1, 8, 9), (2, HEADS, 5, 9), (1, HEADS, 5, 9)]
)
def test_shapes_of_masks(shape):
    q, k, v = operands(2, 5, 9)
    mask = reals(*shape, seed=3) > 0.5
    cut = mask[..., :5, :9]
    per_batch = (cut if cut.dim() == 4 else cut[None] if cut.dim() == 2 else cut[:, None]).expand(2, -1, -1, -1)
    if cut.dim() == 2:
        per_batch = cut.expand(2, 1, 5, 9)
    expected, _, error, _ = batched(q, k, v, lambda b: per_batch[b])
    y, _ = torch_npu.npu_fused_infer_attention_score(q, k, v, atten_mask=mask, input_layout="BNSD", **FUSED)
    assert_near(y, expected, error, torch.float32)
    fusion = torch_npu.npu_fusion_attention(q, k, v, HEADS, "BNSD", atten_mask=mask, scale=SCALE)
    assert torch.equal(fusion[0], y)


@pytest.mark.parametrize("shape", [(3, 9), (1, 9), (3, 1, 9), (3, 1, 1, 9), (1, 1, 1, 12), (1, 1, 9)])
@pytest.mark.parametrize("mode", [0, 1])
def test_masks_of_one_token(shape, mode):
    q, k, v = operands(3, 1, 9)
    mask = reals(*shape, seed=3) > 0.5
    per_batch = mask[..., :9].reshape(-1, 1, 1, 9).expand(3, 1, 1, 9)
    expected, _, error, _ = batched(q, k, v, lambda b: per_batch[b])
    given = {"atten_mask": mask, "input_layout": "BNSD"}
    y, _ = torch_npu.npu_fused_infer_attention_score(q, k, v, sparse_mode=mode, next_tokens=0, **given, **FUSED)
    assert_near(y, expected, error, torch.float32)
    assert torch.equal(torch_npu.npu_incre_flash_attention(q, k, v, **given, **PROMPT), y)


def test_one_token_sees_all_in_the_causal_mode():
    q, k, v = operands(2, 1, 9)
    every, _ = torch_npu.npu_fused_infer_attention_score(q, k, v, input_layout="BNSD", **FUSED)
    for mask in ({"atten_mask": CAUSAL}, {}):
        y, _ = torch_npu.npu_fused_infer_attention_score(q, k, v, input_layout="BNSD", sparse_mode=3, **mask, **FUSED)
        assert torch.equal(y, every)


@pytest.mark.parametrize("mode", [0, 3])
def test_lengths_leave_padding_out(mode):
    q, k, v = operands(3, 5, 9)
    lengths, kv_lengths = [5, 2, 0], [9, 3, 0]
    for b in range(3):
        q[b, :, lengths[b] :] = torch.nan
        k[b, :, kv_lengths[b] :] = torch.nan
        v[b, :, kv_lengths[b] :] = torch.inf
    cut = [
        [row[:, :n] for row, n in zip(x, ns, strict=True)] for x, ns in ((q, lengths), (k, kv_lengths), (v, kv_lengths))
    ]

    def hidden(b):
        return ~visible(3, lengths[b], kv_lengths[b], 0, 0) if mode else None

    expected, lse, error, lse_error = batched(*cut, hidden, rows=5)
    given = {"actual_seq_lengths": lengths, "actual_seq_lengths_kv": kv_lengths, "input_layout": "BNSD"}
    given |= {"sparse_mode": 3, "atten_mask": CAUSAL} if mode else {}
    y, y_lse = torch_npu.npu_fused_infer_attention_score(q, k, v, **given, softmax_lse_flag=True, **FUSED)
    assert_near(y, expected, error, torch.float32)
    assert_near(y_lse, lse, lse_error, torch.float32)
    assert torch.equal(torch_npu.npu_prompt_flash_attention(q, k, v, **given, **PROMPT), y)


def test_lengths_may_be_a_tensor():
    tensors, lengths = operands(2, 5, 9), [9, 4]
    options = {**FUSED, "input_layout": "BNSD"}
    for function in (torch_npu, torch.ops.npu):
        results = [
            function.npu_fused_infer_attention_score(*tensors, **options, actual_seq_lengths_kv=kind(lengths))[0]
            for kind in (list, torch.tensor)
        ]
        assert torch.equal(*results)


def test_one_length_serves_all_sequences():
    q, k, v = operands(3, 1, 9)
    y = torch_npu.npu_incre_flash_attention(q, k, v, actual_seq_lengths=[4], input_layout="BNSD", **PROMPT)
    short = [x[:, :, :4] for x in (k, v)]
    assert torch.equal(y, torch_npu.npu_incre_flash_attention(q, *short, input_layout="BNSD", **PROMPT))


def test_queries_without_keys_give_zeros():
    q, k, v = operands(2, 5, 9)
    given = {"input_layout": "BNSD", "softmax_lse_flag": True}
    for nothing in ({"atten_mask": torch.ones(5, 9, dtype=torch.bool)}, {"actual_seq_lengths_kv": [0]}):
        y, lse = torch_npu.npu_fused_infer_attention_score(q, k, v, **nothing, **given, **FUSED)
        assert y.eq(0).all() and y.shape == q.shape and lse.eq(-torch.inf).all() and lse.shape == (2, HEADS, 5, 1)


@pytest.mark.parametrize("form", ["BSH", "BNSD"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_paged_caches(form, dtype):
    q, k, v = operands(3, 1, 19, dtype)
    lengths = [19, 8, 3]
    keys, values = ([row[:, :n] for row, n in zip(x, lengths, strict=True)] for x in (k, v))
    expected, _, error, _ = batched(q, keys, values)
    (k_cache, table), (v_cache, _) = blocks(keys, 8, form), blocks(values, 8, form)
    paged = {"block_table": table, "block_size": 8}
    y, _ = torch_npu.npu_fused_infer_attention_score(
        laid_out(q, "BSND"), k_cache, v_cache, input_layout="BSND", actual_seq_lengths_kv=lengths, **paged, **FUSED
    )
    assert_near(y, laid_out(expected, "BSND"), laid_out(error, "BSND"), dtype)
    incre = torch_npu.npu_incre_flash_attention(
        laid_out(q, "BSH"), k_cache, v_cache, input_layout="BSH", actual_seq_lengths=lengths, **paged, **PROMPT
    )
    assert torch.equal(incre, y.flatten(2))


@pytest.mark.parametrize("mode", [0, 2, 3, 4])
@pytest.mark.parametrize("paged", [False, True])
def test_packed_sequences(mode, paged):
    """TND: chunks of prompts and single tokens beside each other, as continuous batching makes them."""
    lengths, kv_lengths = [4, 1, 6], [7, 12, 6]
    q = [reals(HEADS, n, D, seed=i) for i, n in enumerate(lengths)]
    k, v = ([reals(KV_HEADS, n, D, seed=10 * s + i) for i, n in enumerate(kv_lengths)] for s in (1, 2))
    hidden = [~visible(mode, *size, 2, 0) if mode else None for size in zip(lengths, kv_lengths, strict=True)]
    results = [one(*tensors) for tensors in zip(q, k, v, hidden, strict=True)]
    expected, lse, error, lse_error = (torch.cat(part, 1).transpose(0, 1) for part in zip(*results, strict=True))
    packed = [torch.cat(x, 1).transpose(0, 1) for x in (q, k, v)]
    mask = {"atten_mask": CAUSAL.to(torch.int8), "sparse_mode": mode} if mode else {}
    given = {"input_layout": "TND", "actual_seq_lengths": [4, 5, 11], "pre_tokens": 2, "next_tokens": 0, **mask}
    if paged:
        (k_cache, table), (v_cache, _) = blocks(k, 4, "BSH"), blocks(v, 4, "BSH")
        given |= {"actual_seq_lengths_kv": kv_lengths, "block_table": table, "block_size": 4}
        tensors = packed[0], k_cache, v_cache
    else:
        given["actual_seq_lengths_kv"] = [7, 19, 25]
        tensors = packed
    y, y_lse = torch_npu.npu_fused_infer_attention_score(*tensors, **given, softmax_lse_flag=True, **FUSED)
    assert_near(y, expected, error, torch.float32)
    assert_near(y_lse, lse, lse_error, torch.float32)
    if not paged:
        ends = {"actual_seq_qlen": [4, 5, 11], "actual_seq_kvlen": [7, 19, 25], "pre_tockens": 2, "next_tockens": 0}
        fusion = torch_npu.npu_fusion_attention(*packed, HEADS, "TND", scale=SCALE, **ends, **mask)[0]
        assert torch.equal(fusion, y)


@pytest.mark.parametrize("layout", ["BSH_BNSD", "BSND_BNSD", "NTD", "NTD_TND"])
def test_layouts_of_fused_alone(layout):
    q, k, v = operands(2, 5, 9)
    source, _, target = layout.partition("_")
    expected, lse, error, lse_error = batched(q, k, v)
    packed, lengths = source == "NTD", {}
    given = (
        [laid_out(x, source) for x in (q, k, v)] if not packed else [x.transpose(0, 1).flatten(1, 2) for x in (q, k, v)]
    )
    if packed:
        lengths = {"actual_seq_lengths": [5, 10], "actual_seq_lengths_kv": [9, 18]}
        expected, error, lse, lse_error = (x.transpose(0, 1).flatten(1, 2) for x in (expected, error, lse, lse_error))
        lse, lse_error = lse.transpose(0, 1), lse_error.transpose(0, 1)
    if target == "TND":
        expected, error = expected.transpose(0, 1), error.transpose(0, 1)
    y, sums = torch_npu.npu_fused_infer_attention_score(
        *given, input_layout=layout, softmax_lse_flag=True, **lengths, **FUSED
    )
    assert_near(y, expected, error, torch.float32)
    assert_near(sums, lse, lse_error, torch.float32)
