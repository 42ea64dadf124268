# SPDX-License-Identifier: Apache-2.0
"""Attention in float64, sequence by sequence, how far float32 may be from it, and operands in the published layouts."""

from __future__ import annotations

import torch
from npu_tensors import reals

UNIT = 2.0**-24  # of float32 roundings
CAUSAL = torch.ones(2048, 2048).triu(1).bool()
HEADS, KV_HEADS, D = 6, 2, 16
SCALE = D**-0.5
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


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


def visible(mode, rows, columns, before, after):
    """The documented sentence of each mode, place by place."""
    shift = columns - rows if mode in (3, 4) else 0
    places = torch.zeros(rows, columns, dtype=torch.bool)
    for i in range(rows):
        for j in range(columns):
            low, high = (i + shift - before, i + shift + after) if mode in (0, 4) else (-columns, i + shift)
            places[i, j] = mode == 1 or low <= j <= high
    return places


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
