# SPDX-License-Identifier: Apache-2.0
"""The attention functions of torch_npu against softmax in float64, sequence by sequence."""

from __future__ import annotations

import pytest
import torch
import torch_npu
import torchair

UNIT = 2.0**-24  # of float32 roundings
CAUSAL = torch.ones(2048, 2048).triu(1).bool()
HEADS, KV_HEADS, D = 6, 2, 16
SCALE = D**-0.5
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def reals(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).npu()


def one(query, key, value, hidden=None, scale=SCALE):
    """One sequence (N, S, D) in float64: result, log-sum-exp, and the bounds of their errors before rounding.

    A score has D + 2 roundings, each of at most the product of magnitudes, and an error of e in all scores of a row
    changes its weights by a factor of at most exp(2 e); exponentials, their sum and the weighted sum add Skv + 8.
    """
    query, key, value = query.double(), key.double(), value.double()
    key, value = (x.repeat_interleave(query.shape[0] // x.shape[0], 0) for x in (key, value))
    scores = scale * query @ key.mT
    magnitudes = torch.nn.functional.pad(query.abs() @ key.abs().mT, (0, 1))  # not empty without keys
    wrong = (D + 2) * UNIT * scale * magnitudes.amax(-1, keepdim=True)
    if hidden is not None:
        scores = scores.masked_fill(hidden, -torch.inf)
    weights = scores.softmax(-1).nan_to_num(0)
    lse = scores.logsumexp(-1, keepdim=True)
    roundings = (key.shape[1] + 8) * UNIT
    return (
        weights @ value,
        lse,
        (2.1 * wrong + roundings) * (weights @ value.abs()),
        wrong + roundings * (1 + lse.abs()),
    )


def assert_near(result, expected, error, dtype):
    assert result.dtype == dtype and result.shape == expected.shape
    error = error + torch.finfo(dtype).eps / 2 * (expected.abs() + error) + torch.finfo(dtype).smallest_normal
    same = (result == expected) | ((result.double() - expected).abs() <= error)
    assert same.all()


def padded(sequences, rows):
    return torch.stack([torch.nn.functional.pad(x, (0, 0, 0, rows - x.shape[1])) for x in sequences])


def batched(query, key, value, hidden=lambda b: None, rows=None):
    """Lists of sequences (N, S, D): result and error (B, N, S, D), log-sum-exp and error (B, N, S, 1)."""
    results = [one(q, k, v, hidden(b)) for b, (q, k, v) in enumerate(zip(query, key, value, strict=True))]
    return [padded(part, rows or query[0].shape[1]) for part in zip(*results, strict=True)]


def laid_out(x, layout):
    """(B, N, S, D) in a layout."""
    axes = {"BSH": (0, 2, 1, 3), "BSND": (0, 2, 1, 3), "BNSD": (0, 1, 2, 3), "SBH": (2, 0, 1, 3)}[layout]
    x = x.permute(axes)
    return x.flatten(2) if "H" in layout else x


def operands(batch, rows, columns, dtype=torch.float32, value_d=D):
    return (
        reals(batch, HEADS, rows, D, dtype=dtype),
        reals(batch, KV_HEADS, columns, D, dtype=dtype, seed=1),
        reals(batch, KV_HEADS, columns, value_d, dtype=dtype, seed=2),
    )


FUSED = {"num_heads": HEADS, "num_key_value_heads": KV_HEADS, "scale": SCALE}
PROMPT = {"num_heads": HEADS, "num_key_value_heads": KV_HEADS, "scale_value": SCALE}


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


def test_equal_heads_are_the_default():
    q = reals(2, 4, 5, D)
    expected, _, error, _ = batched(q, q, q)
    y, _ = torch_npu.npu_fused_infer_attention_score(q, q, q, num_heads=4, scale=SCALE, input_layout="BNSD")
    assert_near(y, expected, error, torch.float32)
    unscaled = torch_npu.npu_prompt_flash_attention(q * SCALE, q, q, num_heads=4, input_layout="BNSD")
    torch.testing.assert_close(unscaled, y)


def visible(mode, rows, columns, before, after):
    """The documented sentence of each mode, place by place."""
    shift = columns - rows if mode in (3, 4) else 0
    places = torch.zeros(rows, columns, dtype=torch.bool)
    for i in range(rows):
        for j in range(columns):
            low, high = (i + shift - before, i + shift + after) if mode in (0, 4) else (-columns, i + shift)
            places[i, j] = mode == 1 or low <= j <= high
    return places


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


V2_NAMES = {
    "num_heads": "num_query_heads",
    "scale": "softmax_scale",
    "actual_seq_lengths": "actual_seq_qlen",
    "actual_seq_lengths_kv": "actual_seq_kvlen",
    "softmax_lse_flag": "return_softmax_lse",
}


@pytest.mark.parametrize(
    "rows, options",
    [
        (5, {"input_layout": "BNSD", "sparse_mode": 3, "atten_mask": CAUSAL, "actual_seq_lengths_kv": [9, 4]}),
        (5, {"input_layout": "BNSD", "actual_seq_lengths": [2, 5], "softmax_lse_flag": True, "pre_tokens": 3}),
        (1, {"input_layout": "BNSD_BSND", "softmax_lse_flag": True}),
    ],
)
def test_the_second_version_has_other_names(rows, options):
    tensors = operands(2, rows, 9, torch.float16)
    options = {**FUSED, **options}
    renamed = {V2_NAMES.get(name, name): value for name, value in options.items()}
    expected = torch_npu.npu_fused_infer_attention_score(*tensors, **options)
    for function in (torch_npu, torch.ops.npu):
        assert all(map(torch.equal, function.npu_fused_infer_attention_score_v2(*tensors, **renamed), expected))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("masked", [False, True])
def test_sinks_are_keys_without_a_value(dtype, masked):
    query, key, value = operands(2, 5, 9, dtype)
    key = key[:, :, : 3 if masked else 9]  # masked: the first queries see no key
    value = value[:, :, : key.shape[2]]
    sink = reals(HEADS, dtype=dtype, seed=3)
    sink[0], sink[1] = 8, -8
    mask = {"atten_mask": CAUSAL, "sparse_mode": 3} if masked else {}
    hidden = CAUSAL[:5, :5][:, 2:] if masked else None
    y, lse, error, lse_error = batched(query, key, value, lambda b: hidden)
    above = lse - sink.double()[:, None, None]
    share = above.sigmoid()
    error = share * (error + y.abs() * (lse_error.nan_to_num(0) + (8 + above.abs().nan_to_num(0, 0, 0)) * UNIT))
    y_sunk, _ = torch_npu.npu_fused_infer_attention_score_v2(
        query, key, value, learnable_sink=sink, num_query_heads=HEADS, num_key_value_heads=KV_HEADS,
        softmax_scale=SCALE, input_layout="BNSD", **mask,
    )  # fmt: skip
    assert_near(y_sunk, y * share, error, dtype)
    assert not masked or not y_sunk[:, :, :2].any()


def test_lengths_may_be_a_tensor():
    tensors, lengths = operands(2, 5, 9), [9, 4]
    options = {**FUSED, "input_layout": "BNSD"}
    for function in (torch_npu, torch.ops.npu):
        results = [
            function.npu_fused_infer_attention_score(*tensors, **options, actual_seq_lengths_kv=kind(lengths))[0]
            for kind in (list, torch.tensor)
        ]
        assert torch.equal(*results)


def test_refusals_of_the_second_version():
    q, k, v = operands(2, 5, 9)
    for name, value in {"quant_scale_p": q, "query_quant_mode": 1, "out_dtype": torch.int8}.items():
        with pytest.raises(NotImplementedError, match=f"{name} is not supported by anynpu"):
            torch_npu.npu_fused_infer_attention_score_v2(q, k, v, **{name: value})
    sink, sinks = (
        torch.zeros(HEADS),
        {"num_query_heads": HEADS, "input_layout": "BNSD", "num_key_value_heads": KV_HEADS},
    )
    with pytest.raises(ValueError, match=r"learnable_sink must have shape \(6,\), one score a head, got \(2,\)"):
        torch_npu.npu_fused_infer_attention_score_v2(q, k, v, learnable_sink=sink[:2], **sinks)
    with pytest.raises(NotImplementedError, match="return_softmax_lse with learnable_sink is not implemented"):
        torch_npu.npu_fused_infer_attention_score_v2(q, k, v, learnable_sink=sink, return_softmax_lse=True, **sinks)
    with pytest.raises(TypeError, match="got an unexpected keyword argument 'num_heads'"):
        torch_npu.npu_fused_infer_attention_score_v2(q, k, v, num_heads=8)
    with pytest.raises(ValueError, match="actual_seq_qlen"):
        torch_npu.npu_fused_infer_attention_score_v2(
            q, k, v, num_query_heads=HEADS, num_key_value_heads=KV_HEADS, input_layout="BNSD", actual_seq_qlen=[7, 7]
        )


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


def blocks(sequences, block, form):
    """A paged cache (blocks, block, N * D) or (blocks, N, block, D) full of NaN but for the sequences; its table."""
    counts = [-(-x.shape[1] // block) for x in sequences]
    order = torch.randperm(sum(counts) + 2, generator=torch.Generator().manual_seed(4)).tolist()
    cache = torch.full((len(order), block, *sequences[0].shape[::2]), torch.nan)
    table = torch.full((len(sequences), max(counts) + 1), -1, dtype=torch.int32)
    for b, x in enumerate(sequences):
        for i, part in enumerate(x.split(block, 1)):
            table[b, i] = order.pop()
            cache[table[b, i], : part.shape[1]] = part.transpose(0, 1)
    return (cache.flatten(2) if form == "BSH" else cache.transpose(1, 2).contiguous()).to(sequences[0].dtype), table


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


Q, K, V = operands(2, 5, 9)
CODES, MODES = K.to(torch.int8), ("key_antiquant_mode", "value_antiquant_mode")
ROW = Q[:, :, :1]
TND = [x.transpose(0, 1).flatten(1, 2).transpose(0, 1) for x in (Q, K, V)]
TABLE, CACHE = torch.tensor([[0, 1], [2, 3]], dtype=torch.int32), torch.zeros(4, 8, KV_HEADS * D)


@pytest.mark.parametrize(
    "tensors, options, kind, text",
    [
        ((Q.double(), K, V), {}, TypeError, "query must be float32 or float16 or bfloat16, got float64"),
        ((Q.half(), K.half().to(torch.int8), V.half()), {}, TypeError, "key must be float16, got int8"),
        ((Q, K, V.half()), {}, TypeError, "value must be float32, got float16"),
        (
            (Q, K, V),
            {"input_layout": "BNSD_SBH"},
            ValueError,
            "Layout BNSD_SBH is not supported! input_layout must be",
        ),
        (
            (Q, K, V),
            {"input_layout": "BSH"},
            ValueError,
            r"Layout BSH, query must have 3 axes, got shape \(2, 6, 5, 16\)",
        ),
        ((Q, K, V), {"num_heads": 0}, ValueError, "numHeads should be greater than 0, but got 0"),
        ((Q, K, V), {"num_heads": 3}, ValueError, "num_heads must be a multiple of num_key_value_heads, got 3 and 2"),
        ((Q, K, V), {"num_heads": 4}, ValueError, "axis 1 of query must be its 4 heads, got shape"),
        ((Q, K, V), {"num_key_value_heads": 3}, ValueError, "axis 1 of key must be its 3 heads, got shape"),
        ((Q[0], K[0], V[0]), {"input_layout": "BSH", "num_heads": 7, "num_key_value_heads": 7}, ValueError, "7 heads"),
        ((Q, K[:1], V[:1]), {}, ValueError, "query has 2 sequences, key 1"),
        ((Q[:0], K[:0], V[:0]), {}, ValueError, "query must have at least one sequence"),
        ((Q, K, V[:, :, 1:]), {}, ValueError, "value must have as many tokens as key, 9, got 8"),
        ((Q, K[..., 1:], V), {}, ValueError, "the heads of key must be as long as query's, 16, got 15"),
        ((Q, K, V), {"sparse_mode": 5}, NotImplementedError, "sparse_mode must be 0, 1, 2, 3 or 4, got 5"),
        ((Q, K, V), {"sparse_mode": 3}, ValueError, "atten_mask must be given for sparse_mode 3"),
        ((Q, K, V), {"sparse_mode": 3, "atten_mask": CAUSAL[:5, :9]}, ValueError, r"\(2048, 2048\).*got \(5, 9\)"),
        ((Q, K, V), {"atten_mask": CAUSAL[:4, :9]}, ValueError, r"atten_mask must have shape \(5, 9\).*got \(4, 9\)"),
        ((Q, K, V), {"atten_mask": CAUSAL[:5, :8]}, ValueError, r"atten_mask must have shape \(5, 9\).*got \(5, 8\)"),
        ((Q, K, V), {"atten_mask": CAUSAL[:5, :9].expand(3, 5, 9)}, ValueError, r"atten_mask must have shape"),
        ((Q, K, V), {"atten_mask": CAUSAL[0]}, ValueError, "atten_mask must have 2 to 4 axes"),
        ((Q, K, V), {"atten_mask": CAUSAL[:5, :9].float()}, TypeError, "atten_mask must be bool or int8 or uint8"),
        ((ROW, K, V), {"sparse_mode": 4, "atten_mask": CAUSAL}, NotImplementedError, "for queries of one token, got 4"),
        ((Q, K, V), {"actual_seq_lengths": [5, 6]}, ValueError, r"actual_seq_lengths must be in \[0, 5\], got 6"),
        ((Q, K, V), {"actual_seq_lengths_kv": [-1]}, ValueError, r"actual_seq_lengths_kv must be in \[0, 9\], got -1"),
        ((Q, K, V), {"actual_seq_lengths": [1, 2, 3]}, ValueError, "must have 1 or 2 entries, got 3"),
        ((Q, K, V), {"actual_seq_lengths": torch.ones(2)}, TypeError, "actual_seq_lengths must be a list of ints"),
        (TND, {"input_layout": "TND"}, TypeError, "actual_seq_lengths must be a list of ints in layout TND, got None"),
        (TND, {"input_layout": "TND", "actual_seq_lengths": [4, 9]}, ValueError, "end with T = 10 in layout TND, got"),
        (TND, {"input_layout": "TND", "actual_seq_lengths": [11, 10]}, ValueError, "must be cumulative"),
        (
            TND,
            {
                "input_layout": "TND",
                "actual_seq_lengths": [5, 10],
                "actual_seq_lengths_kv": [9, 18],
                "atten_mask": CAUSAL,
            },
            NotImplementedError,
            "atten_mask with sparse_mode 0 is not supported by anynpu in layout TND, supported: sparse_mode 2, 3 and 4",
        ),
        (
            (Q, K, V),
            {"pse_shift": Q},
            NotImplementedError,
            "pse_shift is not supported by anynpu, supported: float query",
        ),
        ((Q, K, V), {"antiquant_scale": Q}, TypeError, "antiquant_scale is for int8 codes, got float32"),
        ((Q, CODES, CODES), {}, TypeError, "key must be float32, got int8"),
        ((Q, CODES, CODES), {"antiquant_scale": Q[0, 0]}, ValueError, "the first axis of antiquant_scale must be 2"),
        ((Q, CODES, CODES), {"antiquant_scale": Q, "antiquant_mode": 2}, ValueError, "must be 0 or 1, got 2"),
        ((Q, CODES, CODES), {"key_antiquant_scale": Q}, ValueError, "value_antiquant_scale must be given together"),
        ((Q, CODES, CODES), {"key_antiquant_offset": Q}, ValueError, "key_antiquant_offset needs a scale"),
        (
            (Q, CODES, CODES),
            {"key_antiquant_scale": Q, "value_antiquant_scale": Q},
            ValueError,
            f"key_antiquant_scale must have {KV_HEADS * D} elements for mode 0, got",
        ),
        (
            (Q, CODES, CODES),
            {"key_antiquant_scale": Q, "value_antiquant_scale": Q, "key_antiquant_mode": 1},
            ValueError,
            "modes of key and value must be equal, 0 to 5, or 0 and 1, got 1 and 0",
        ),
        (
            (Q, CODES, CODES),
            {"key_antiquant_scale": Q, "value_antiquant_scale": Q, **dict.fromkeys(MODES, 4)},
            ValueError,
            "key_antiquant_scale of mode 4 is for a block_table",
        ),
        (
            (Q, CODES, CODES),
            {"key_antiquant_scale": Q[0, 0], "value_antiquant_scale": Q, **dict.fromkeys(MODES, 1)},
            ValueError,
            r"key_antiquant_scale must have shape \(2, 9\) for mode 1, or more tokens, got \(5, 16\)",
        ),
        ((Q, K, V), {"query_rope": Q}, ValueError, "query_rope and key_rope must be given together"),
        ((Q, K, V), {"query_rope": Q, "key_rope": K[:, :, :1]}, ValueError, "key_rope must have the heads and tokens"),
        ((Q, K, V), {"query_rope": Q, "key_rope": K.half()}, TypeError, "key must be float32, got float16"),
        (
            (Q, CODES, CODES),
            {"antiquant_scale": torch.ones(2), "query_rope": Q, "key_rope": K},
            NotImplementedError,
            "query_rope is not supported by anynpu with int8 key and value",
        ),
        ((Q, CACHE, CACHE), {"block_table": TABLE}, ValueError, "block_size must be that of key, 8, got 0"),
        ((Q, CACHE, CACHE), {"block_table": TABLE, "block_size": 8}, TypeError, "actual_seq_lengths_kv must be given"),
        ((Q, CACHE, CACHE), {"block_table": TABLE.long()}, TypeError, "block_table must be int32, got int64"),
        ((Q, CACHE, CACHE), {"block_table": TABLE[0]}, ValueError, "block_table must have 2 axes"),
        ((Q, CACHE[0], CACHE), {"block_table": TABLE}, ValueError, "key's dim should be 3/4/5, but got 2"),
        (
            (Q, CACHE, CACHE),
            {"block_table": TABLE, "block_size": 8, "actual_seq_lengths_kv": [16, 17]},
            ValueError,
            r"actual_seq_lengths_kv must be in \[0, 16\], got 17",
        ),
        (
            (Q, CACHE, CACHE),
            {"block_table": TABLE + 1, "block_size": 8, "actual_seq_lengths_kv": [16, 16]},
            RuntimeError,
            r"block_table must be in \[0, 4\) where rows are used, got 4 at \[1, 1\]",
        ),
    ],
)
def test_what_fused_refuses(tensors, options, kind, text):
    with pytest.raises(kind, match=text):
        torch_npu.npu_fused_infer_attention_score(*tensors, **{"input_layout": "BNSD", **FUSED, **options})


@pytest.mark.parametrize(
    "call, kind, text",
    [
        (lambda: torch_npu.npu_incre_flash_attention(Q, K, V, input_layout="BNSD", **PROMPT), ValueError, "one token"),
        (
            lambda: torch_npu.npu_incre_flash_attention(ROW, K, V, input_layout="BNSD_BSND", **PROMPT),
            ValueError,
            "input_layout must be BSH or BSND or BNSD",
        ),
        (
            lambda: torch_npu.npu_incre_flash_attention(ROW, K, V, kv_padding_size=Q),
            NotImplementedError,
            "kv_padding_size is not supported by anynpu",
        ),
        (
            lambda: torch_npu.npu_prompt_flash_attention(Q, K, V, deq_scale1=Q),
            NotImplementedError,
            "deq_scale1 is not supported by anynpu",
        ),
        (
            lambda: torch_npu.npu_fusion_attention(Q, K, V, HEADS, "BNSD", keep_prob=0.9),
            NotImplementedError,
            "keep_prob must be 1.0, anynpu has no dropout here, got 0.9",
        ),
        (
            lambda: torch_npu.npu_fusion_attention(Q, K, V, HEADS, "BNSD", actual_seq_qlen=[5, 5]),
            NotImplementedError,
            "actual_seq_qlen and actual_seq_kvlen are for layout TND, got BNSD",
        ),
        (lambda: torch_npu.npu_fusion_attention(Q, K, V, HEADS, "BNSD", pse=Q), NotImplementedError, "pse is not"),
        (lambda: torch_npu.npu_fusion_attention(Q, K, V, HEADS, "BSH"), ValueError, "Layout BSH, query must have 3"),
        (lambda: torch_npu.npu_fusion_attention(Q, K, V, 0, "BNSD"), ValueError, "numHeads should be greater than 0"),
        (
            lambda: torch_npu.npu_fusion_attention(Q, K[:, :0], V, HEADS, "BNSD"),
            ValueError,
            "axis 1 of key must be its",
        ),
    ],
)
def test_what_the_others_refuse(call, kind, text):
    with pytest.raises(kind, match=text):
        call()


@pytest.mark.parametrize("backend", ["aot_eager", torchair.get_npu_backend()], ids=["aot_eager", "torchair"])
def test_functions_are_captured_in_graphs(backend):
    def step(q, k, v, row, table, cache, mask, lengths):
        prompt = torch_npu.npu_prompt_flash_attention(
            q, k, v, atten_mask=mask, sparse_mode=3, input_layout="BNSD", **PROMPT
        )
        new = torch_npu.npu_incre_flash_attention(row, k, v, actual_seq_lengths=lengths, input_layout="BNSD", **PROMPT)
        paged, lse = torch_npu.npu_fused_infer_attention_score(
            row, cache, cache, block_table=table, block_size=8, actual_seq_lengths_kv=lengths, input_layout="BNSD",
            softmax_lse_flag=True, **FUSED,
        )  # fmt: skip
        return prompt, new, paged, lse, torch_npu.npu_fusion_attention(q, k, v, HEADS, "BNSD", scale=SCALE)[0]

    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=backend)
    for lengths in ([9, 4], [9, 8]):
        arguments = Q, K, V, ROW, TABLE, reals(*CACHE.shape, seed=5), CAUSAL, lengths
        torch.testing.assert_close(compiled(*arguments), step(*arguments), rtol=2e-6, atol=2e-6)


def test_decoding_compiles_once():
    def step(row, k, v, lengths):
        return torch_npu.npu_incre_flash_attention(row, k, v, actual_seq_lengths=lengths, input_layout="BNSD", **PROMPT)

    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in range(3, 8):
        arguments = ROW, K, V, [length, length + 1]
        torch.testing.assert_close(compiled(*arguments), step(*arguments), rtol=2e-6, atol=2e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize("version", ["", "_v2"])
@pytest.mark.parametrize("layout", ["BNSD_NBSD", "BSND_NBSD", "TND_NTD", "TND"])
def test_rope_beside_query_and_key(version, layout):
    """The heads of query and key are those and the rotated parts: as in multi-head latent attention."""
    q, k, v = operands(2, 5, 9)
    q_rope, k_rope = reals(2, HEADS, 5, 8, seed=3), reals(2, KV_HEADS, 9, 8, seed=4)
    whole = [torch.cat(both, -1) for both in ((q, q_rope), (k, k_rope))]
    expected, lse, error, _ = batched(*whole, v)
    source, _, target = layout.partition("_")
    given = [x.transpose(1, 2).flatten(0, 1) if source == "TND" else laid_out(x, source) for x in (q, k, v)]
    ropes = [x.transpose(1, 2).flatten(0, 1) if source == "TND" else laid_out(x, source) for x in (q_rope, k_rope)]
    lengths = ([5, 10], [9, 18]) if source == "TND" else (None, None)
    new = version == "_v2"
    names = ("actual_seq_qlen", "actual_seq_kvlen") if new else ("actual_seq_lengths", "actual_seq_lengths_kv")
    scales = {"num_query_heads": HEADS, "softmax_scale": SCALE} if new else {"num_heads": HEADS, "scale": SCALE}
    function = getattr(torch_npu, f"npu_fused_infer_attention_score{version}")
    options = {
        "query_rope": ropes[0], "key_rope": ropes[1], "input_layout": layout, "num_key_value_heads": KV_HEADS,
        **dict(zip(names, lengths, strict=True)), **scales,
    }  # fmt: skip
    y, _ = function(*given, **options)

    def arranged(x):
        if target:
            x = x.transpose(0, 1)
            return x.flatten(1, 2) if source == "TND" else x
        return x.transpose(1, 2).flatten(0, 1)

    wrong = arranged(error) * (1 + 8 / D)  # scores have 8 more roundings
    assert_near(y, arranged(expected), wrong, torch.float32)
    out = [torch.full_like(y, 7), torch.full((1,), 7.0).npu()]
    workspace = getattr(torch_npu, f"_npu_fused_infer_attention_score{version}_get_max_workspace")(*given, **options)
    function.out(*given, **options, workspace=workspace, out=out)
    assert torch.equal(out[0], y) and out[1].tolist() == [0]
    with pytest.raises(ValueError, match="the tensors of out must have the results' shapes"):
        function.out(*given, **options, out=[out[0][:1], out[1]])


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


LENGTHS, BLOCK, BLOCK_TABLE = [13, 30], 8, torch.tensor([[5, 1, 9, 9], [0, 3, 2, 7]], dtype=torch.int32)
FACTORS = {  # shapes of scales by mode; the last two are paged
    0: (1, KV_HEADS, 1, D), 1: (2, 30), 2: (KV_HEADS,), 3: (2, KV_HEADS, 30), 4: (10, BLOCK), 5: (10, KV_HEADS, BLOCK),
}  # fmt: skip


def codes(*shape, seed):
    return torch.randint(-128, 128, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.int8).npu()


def factors(shape, seed, dtype=torch.float32):
    """Scales that are powers of two and small whole offsets: float32 holds every key and value."""
    exponents = torch.randint(-9, -5, shape, generator=torch.Generator().manual_seed(seed))
    offsets = torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed + 1))
    return (2.0**exponents).to(dtype).npu(), offsets.to(dtype).npu()


def blocks_of(cache, b):
    """Blocks (blocks, N, BLOCK, ...) of a sequence in order: (N, S, ...)."""
    return torch.cat([cache[block] for block in BLOCK_TABLE[b, : -(-LENGTHS[b] // BLOCK)].tolist()], 1)[:, : LENGTHS[b]]


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
