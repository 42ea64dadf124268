# SPDX-License-Identifier: Apache-2.0
"""Sparse attention: what the indexers find, against scores in integers, and the attention to it, in float64."""

from __future__ import annotations

import pytest
import torch
import torch_npu
from attention_formula import assert_near, one
from npu_tensors import codes, integers, reals

N, D, ROPE, COUNT, BLOCK = 3, 16, 8, 5, 4
QUERIES, KEYS = (3, 0, 1), (9, 4, 2)  # tokens of the sequences
BLOCKS = ((2, 0, 5), (1,), (4,))  # of a paged cache
LAYOUTS = pytest.mark.parametrize("layouts", ["BSND BSND", "TND TND", "TND PA_BSND", "BSND PA_BSND"])
MODES = pytest.mark.parametrize("sparse_mode", [0, 3])


def lengths(counts, layout):
    values = torch.tensor(counts, dtype=torch.int32)
    return (values.cumsum(0, dtype=torch.int32) if layout == "TND" else values).npu()


def placed(sequences, layout):
    """Tokens of sequences in a layout; what stands between and behind them is large."""
    first = sequences[0]
    if layout == "TND":
        return torch.cat([*sequences, first.new_full((2, *first.shape[1:]), 100)])
    if layout == "BSND":
        most = max(map(len, sequences)) + 1
        rows = first.new_full((len(sequences), most, *first.shape[1:]), 100)
        for row, tokens in zip(rows, sequences, strict=True):
            row[: len(tokens)] = tokens
        return rows
    cache = first.new_full((6, BLOCK, *first.shape[1:]), 100)
    for blocks, tokens in zip(BLOCKS, sequences, strict=True):
        for block, part in zip(blocks, tokens.split(BLOCK), strict=True):
            cache[block, : len(part)] = part
    return cache


def taken(x, layout):
    """The tokens of the sequences of queries."""
    return x[: sum(QUERIES)].split(QUERIES) if layout == "TND" else [x[b, :n] for b, n in enumerate(QUERIES)]


def options(layouts, keys="kv"):
    query, key = layouts.split()
    table = torch.tensor([[*blocks, -9, -9][:3] for blocks in BLOCKS], dtype=torch.int32)
    return {
        "actual_seq_lengths_query": lengths(QUERIES, query),
        f"actual_seq_lengths_{keys}": lengths(KEYS, key),
        "block_table": table.npu() if key == "PA_BSND" else None,
        "layout_query": query,
        f"layout_{keys}": key,
    }


def seen(rows, columns, sparse_mode):
    """Of a sequence: what each query may see."""
    return torch.ones(rows, columns).bool().tril(columns - rows if sparse_mode == 3 else columns)


@LAYOUTS
@MODES
@pytest.mark.parametrize("quantised", [False, True])
def test_indexers_find_the_greatest_scores(layouts, sparse_mode, quantised):
    dtype = torch.int8 if quantised else torch.bfloat16
    queries = [integers(-3, 4, n, N, D, seed=n).to(dtype) for n in QUERIES]
    keys = [integers(-3, 4, n, 1, D, seed=n + 9).to(dtype) for n in KEYS]
    weights = [integers(-3, 4, n, N, seed=n + 20).half() for n in QUERIES]
    powers = [[2.0 ** integers(-1, 2, *x.shape[:-1], seed=7) for x in side] for side in (queries, keys)]
    query_layout, key_layout = layouts.split()
    tensors = [placed(queries, query_layout), placed(keys, key_layout), placed(weights, query_layout)]
    further = options(layouts, "key") | {"sparse_count": COUNT, "sparse_mode": sparse_mode}
    if quantised:
        scales = [
            placed([x.half() for x in side], layout) for side, layout in zip(powers, layouts.split(), strict=True)
        ]
        best = torch_npu.npu_quant_lightning_indexer(*tensors, *scales, 0, 0, **further)
    else:
        powers = [[torch.ones_like(x) for x in side] for side in powers]
        best, values = torch_npu.npu_lightning_indexer(*tensors, **further)
        assert values.numel() == 0
    assert best.dtype == torch.int32
    assert best.shape == (*tensors[0].shape[:-2], 1, COUNT)
    for i, found in enumerate(taken(best, query_layout)):
        left, right = (x[i].double() * scale[i].unsqueeze(-1) for x, scale in zip((queries, keys), powers, strict=True))
        scores = torch.einsum("qn,qnk->qk", weights[i].double(), torch.einsum("qnd,kd->qnk", left, right[:, 0]).relu())
        for row, allowed, places in zip(scores, seen(*scores.shape, sparse_mode), found[:, 0].tolist(), strict=True):
            known = [place for place in places if place >= 0]
            assert places == known + [-1] * (COUNT - len(known))
            assert len(set(known)) == len(known) == min(COUNT, int(allowed.sum()))
            assert allowed[known].all()
            assert torch.equal(row[known], row[allowed].sort(descending=True).values[: len(known)])  # exact sums


def indices(sparse_mode, block=1):
    """Random keys of each query, as an indexer gives them: without some, with -1 behind them; one is out of sight."""
    generator = torch.Generator().manual_seed(1)
    chosen = []
    for rows, columns in zip(QUERIES, KEYS, strict=True):
        places = torch.stack([torch.randperm(columns // block + 1, generator=generator) for _ in range(rows)] or [
            torch.empty(columns // block + 1).long()
        ])[:rows]  # fmt: skip
        kept = torch.nn.functional.pad(places[:, : max(1, columns // block // 2)], (0, COUNT), value=-1)[:, :COUNT]
        chosen.append(kept.unsqueeze(1).int().npu())
    return chosen


def hidden(chosen, columns, sparse_mode, block):
    """What the queries of a sequence do not attend to."""
    visible = torch.zeros(len(chosen), columns).bool()
    for row, places in zip(visible, chosen[:, 0].tolist(), strict=True):
        for place in places:
            if place >= 0:
                row[place * block : (place + 1) * block] = True
    return ~(visible & seen(*visible.shape, sparse_mode))


@LAYOUTS
@MODES
@pytest.mark.parametrize("with_rope", [False, True])
@pytest.mark.parametrize("block", [1, 2])
def test_attention_to_the_keys_of_indices(layouts, sparse_mode, with_rope, block):
    query_layout, key_layout = layouts.split()
    queries = [reals(n, N, D, dtype=torch.bfloat16, seed=n) for n in QUERIES]
    keys, values = ([reals(n, 1, D, dtype=torch.bfloat16, seed=n + 9 * i) for n in KEYS] for i in (1, 2))
    chosen, further = indices(sparse_mode, block), options(layouts)
    ropes = [[x[..., :0] for x in queries], [x[..., :0] for x in keys]]
    if with_rope:
        ropes = [[x[..., :ROPE] * 2 for x in queries], [x.flip(-1)[..., :ROPE] for x in keys]]
        further |= {"query_rope": placed(ropes[0], query_layout), "key_rope": placed(ropes[1], key_layout)}
    tensors = [placed(queries, query_layout), placed(keys, key_layout), placed(values, key_layout)]
    result, *nothing = torch_npu.npu_sparse_flash_attention(
        *tensors, placed(chosen, query_layout), 0.3, sparse_block_size=block, sparse_mode=sparse_mode, **further
    )
    assert result.shape == tensors[0].shape
    assert not any(each.numel() for each in nothing)
    for i, rows in enumerate(taken(result, query_layout)):
        query, key = (torch.cat([x[i], rope[i]], -1) for x, rope in zip((queries, keys), ropes, strict=True))
        mask = hidden(chosen[i], KEYS[i], sparse_mode, block)
        expected, _, error, _ = one(*(x.transpose(0, 1) for x in (query, key, values[i])), mask, 0.3)
        assert_near(rows.transpose(0, 1), expected, error, torch.bfloat16)


@pytest.mark.parametrize("layouts", ["TND PA_BSND", "BSND BSND"])
def test_attention_to_packed_codes(layouts):
    tile, latent = 8, 16
    query_layout, key_layout = layouts.split()
    queries = [reals(n, N, latent + ROPE, dtype=torch.bfloat16, seed=n) for n in QUERIES]
    values, ropes, rows = [], [], []
    for n in KEYS:
        scale = reals(n, 1, latent // tile, seed=n).abs() / 64
        coded, rope = codes(n, 1, latent, seed=n), reals(n, 1, ROPE, dtype=torch.bfloat16, seed=n + 1)
        rows.append(torch.cat([coded, rope.view(torch.int8), scale.view(torch.int8)], -1))
        values.append(coded * scale.repeat_interleave(tile, -1))
        ropes.append(rope)
    chosen = indices(3)
    kv = placed(rows, key_layout)
    result = torch_npu.npu_kv_quant_sparse_flash_attention(
        placed(queries, query_layout), kv, kv, placed(chosen, query_layout), 0.3, 2, 2, attention_mode=2,
        tile_size=tile, rope_head_dim=ROPE, **options(layouts),
    )  # fmt: skip
    for i, got in enumerate(taken(result, query_layout)):
        key = torch.cat([values[i], ropes[i].float()], -1)
        mask = hidden(chosen[i], KEYS[i], 3, 1)
        expected, _, error, _ = one(*(x.transpose(0, 1) for x in (queries[i], key, values[i])), mask, 0.3)
        assert_near(got.transpose(0, 1), expected, error, torch.bfloat16)


def call(**changed):
    query, key = reals(2, 3, N, D, dtype=torch.float16), reals(2, 5, 1, D, dtype=torch.float16)
    found = torch.zeros(2, 3, 1, COUNT, dtype=torch.int32).npu()
    given = {"query": query, "key": key, "value": key, "sparse_indices": found, "scale_value": 1.0}
    return torch_npu.npu_sparse_flash_attention(**(given | changed))


@pytest.mark.parametrize(
    "changed, error, sentence",
    [
        ({"layout_kv": "BNSD"}, ValueError, "layout_kv must be BSND or TND or PA_BSND, got BNSD"),
        ({"layout_kv": "PA_BSND"}, ValueError, "block_table must be given with layout PA_BSND, and only there"),
        ({"sparse_mode": 4}, ValueError, "sparse_mode must be 0 or 3, got 4"),
        ({"pre_tokens": 3}, NotImplementedError, "pre_tokens is for modes that anynpu does not implement, got 3"),
        ({"return_softmax_lse": True}, NotImplementedError, "return_softmax_lse is for modes"),
        ({"sparse_block_size": 0}, ValueError, "sparse_block_size must be at least 1, got 0"),
        ({"actual_seq_lengths_kv": torch.tensor([6, 1])}, ValueError, r"must be 2 lengths up to 5, got \[6, 1\]"),
        ({"query_rope": torch.zeros(2, 3, N, 4).half()}, ValueError, "query_rope and key_rope must be given together"),
        ({"value": torch.zeros(2, 5, 1, D)}, TypeError, "value must be float16, got float32"),
    ],
)
def test_refusals(changed, error, sentence):
    with pytest.raises(error, match=f"npu_sparse_flash_attention: .*{sentence}"):
        call(**changed)


def test_a_block_that_is_not_there_is_refused():
    cache = reals(2, BLOCK, 1, D, dtype=torch.float16)
    table = torch.tensor([[1, 2]], dtype=torch.int32).npu()
    ends = {"actual_seq_lengths_query": torch.tensor([2]), "actual_seq_lengths_key": torch.tensor([7])}
    with pytest.raises(ValueError, match=r"block_table must be in \[0, 1\] where keys are used, got \[1, 2\]"):
        torch_npu.npu_lightning_indexer(
            reals(2, N, D, dtype=torch.float16), cache, reals(2, N, dtype=torch.float16), block_table=table,
            layout_query="TND", layout_key="PA_BSND", **ends,
        )  # fmt: skip


@pytest.mark.parametrize(
    "name, published",
    [
        ("npu_lightning_indexer", "npu_lightning_indexer"),
        ("npu_lightning_indexer_quant", "npu_quant_lightning_indexer"),
        ("npu_sparse_flash_attention", "npu_sparse_flash_attention"),
    ],
)
def test_names_of_vllm_ascend(name, published):
    schemas = getattr(torch.ops._C_ascend, name).default._schema, getattr(torch.ops.npu, published).default._schema
    assert str(schemas[0]).partition("(")[2] == str(schemas[1]).partition("(")[2]


def test_an_operator_of_vllm_ascend():
    query, key = reals(2, 3, N, D, dtype=torch.float16), reals(2, 5, 1, D, dtype=torch.float16)
    best, _ = torch.ops._C_ascend.npu_lightning_indexer(query, key, query[..., 0], sparse_count=COUNT)
    expected, _ = torch_npu.npu_lightning_indexer(query, key, query[..., 0], sparse_count=COUNT)
    assert torch.equal(best, expected)
