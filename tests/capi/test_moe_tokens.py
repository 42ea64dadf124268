# SPDX-License-Identifier: Apache-2.0
"""The older and smaller operators around the experts of tokens, against torch's sorts and sums."""

from __future__ import annotations

import ctypes
import re

import pytest
import torch
from c_cases import assert_equal, run

import anynpu

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
DTYPES = pytest.mark.parametrize("dtype", FLOATS, ids=str)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=generator(1)).to(dtype)


def ids(*shape: int, low: int = -3, high: int = 6, dtype: torch.dtype = torch.int32) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=generator(2), dtype=dtype)


def integer(value: int) -> ctypes.c_int64:
    return ctypes.c_int64(value)


def init_routing(x, row_idx, expert_idx, active_num, rows=None):
    slots = expert_idx.numel()
    rows = min(expert_idx.shape[0], active_num) * expert_idx.shape[-1] if rows is None else rows
    outputs = [([rows, x.shape[-1]], x.dtype), ([slots], torch.int32), ([slots], torch.int32)]
    return run(
        "aclnnMoeInitRouting",
        [x, row_idx, expert_idx],
        outputs,
        lambda x, row_idx, expert_idx, *made: [x, row_idx, expert_idx, integer(active_num), *made],
    )


@DTYPES
@pytest.mark.parametrize("active_num", [0, 4, 7, 99])
def test_moe_init_routing(active_num, dtype):
    x, experts = some(7, 20, dtype=dtype), ids(7, 3)
    conventional = torch.arange(21, dtype=torch.int32).reshape(3, 7).t()
    shuffled = torch.randperm(21, generator=generator(3)).int().reshape(7, 3)
    for row_idx in (conventional, conventional.contiguous(), shuffled):
        outcome, results = init_routing(x, row_idx, experts, active_num)
        assert outcome.status == 0, outcome
        sorted_ids, order = experts.flatten().sort(stable=True)
        slots = row_idx.flatten()[order].long()
        places = torch.empty(21, dtype=torch.int32)
        places[slots] = torch.arange(21).int()
        assert_equal(results, [x[slots[: min(7, active_num) * 3] % 7], places, sorted_ids])


def test_moe_init_routing_of_nothing():
    outcome, results = init_routing(some(0, 4), ids(0, 2), ids(0, 2), 3)
    assert outcome.status == 0, outcome
    assert all(each.numel() == 0 for each in results)


@pytest.mark.parametrize(
    "changes, status, sentence",
    [
        ({"x": some(7, 20, 1)}, 161002, "The x should be 2D, got 3D"),
        ({"x": ids(7, 20)}, 161002, "x must be float32, float16 or bfloat16, got int32"),
        ({"x": some(6, 20)}, 161002, r"x must be ND, of shape \(7, 20\), got \(6, 20\)"),
        ({"row_idx": ids(7, 2)}, 161002, r"rowIdx must be ND, of shape \(7, 3\), got \(7, 2\)"),
        ({"row_idx": ids(7, 3).long()}, 161002, "rowIdx must be int32, got int64"),
        ({"active_num": -1, "rows": 21}, 161002, "activeNum must be a non-negative number, got -1"),
        ({"rows": 20}, 161002, r"expandedXOut must be ND, of shape \(21, 20\), got \(20, 20\)"),
        ({"row_idx": ids(7, 3, low=21, high=22)}, 361001, r"rowIdx must be in .* \[0, 20\], got 21 at 0"),
        ({"row_idx": None}, 161001, "rowIdx is a null pointer"),
    ],
)
def test_moe_init_routing_refuses(changes, status, sentence):
    row_idx = torch.arange(21, dtype=torch.int32).reshape(7, 3)
    args = {"x": some(7, 20), "row_idx": row_idx, "expert_idx": ids(7, 3), "active_num": 7} | changes
    outcome, _ = init_routing(**args)
    assert outcome.status == status, outcome
    assert re.search(sentence, outcome.sentence), outcome


def permute(tokens, indices, num_out_tokens=0, padded=False, rows=None):
    slots = indices.numel()
    wanted = min(num_out_tokens, slots) if num_out_tokens > 0 else max(slots + num_out_tokens, 0)
    outputs = [([wanted if rows is None else rows, tokens.shape[-1]], tokens.dtype), ([slots], torch.int32)]
    attributes = [integer(num_out_tokens), ctypes.c_bool(padded)]
    return run("aclnnMoeTokenPermute", [tokens, indices], outputs, lambda t, i, *made: [t, i, *attributes, *made])


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int8], ids=str)
@pytest.mark.parametrize("rows", [0, 5, 100, -4, -100])
def test_moe_token_permute(rows, dtype, isa):
    tokens = (some(6, 40) * 9).to(dtype)
    for indices in (ids(6, 3), ids(6), ids(6, 2, dtype=torch.int64) * 2**40, ids(2, 6).t()):
        outcome, results = permute(tokens, indices, rows)
        assert outcome.status == 0, outcome
        order = indices.flatten().argsort(stable=True)
        wanted = min(rows, len(order)) if rows > 0 else max(len(order) + rows, 0)
        expected = tokens[order[:wanted] // (indices.shape[1] if indices.dim() == 2 else 1)]
        assert_equal(results, [expected, order.argsort().int()])


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"padded": True}, "paddedMode must be false, true is not implemented"),
        ({"tokens": some(6, 4, 1)}, "tokens must have 2 axes and indices 1 or 2, got 3 and 2"),
        ({"indices": ids(5, 2)}, "the first dim of expert_idx and x should be the same, got 5 and 6"),
        ({"indices": ids(6, 2).float()}, "indices must be int32 or int64, got float32"),
        ({"rows": 11}, r"permuteTokensOut must be ND, of shape \(12, 4\), got \(11, 4\)"),
    ],
)
def test_moe_token_permute_refuses(changes, sentence):
    outcome, _ = permute(**({"tokens": some(6, 4), "indices": ids(6, 2)} | changes))
    assert outcome.status == 161002, outcome
    assert re.search(sentence, outcome.sentence), outcome


def unpermute(rows, index, probs=None, padded=False, tokens=None):
    tokens = (index.shape[0] if probs is None else probs.shape[0]) if tokens is None else tokens
    return run(
        "aclnnMoeTokenUnpermute",
        [rows, index, probs],
        [([tokens, rows.shape[-1]], rows.dtype)],
        lambda rows, index, probs, out: [rows, index, probs, ctypes.c_bool(padded), None, out],
    )


@DTYPES
def test_moe_token_unpermute(dtype, isa):
    rows, probs = some(8, 40, dtype=dtype), torch.rand(6, 2, generator=generator(4)).to(dtype)
    index = torch.tensor([3, 0, 7, 8, 1, 2, 5, 100, 6, 4, 2, -1], dtype=torch.int32)  # 8, 100 and -1 add nothing
    outcome, results = unpermute(rows, index, probs)
    assert outcome.status == 0, outcome
    known = index.masked_fill(index >= 8, -1)
    assert_equal(results, [anynpu.moe_finalize_routing(rows, None, None, None, probs, known, drop_pad_mode=2)])
    outcome, results = unpermute(rows, index[:3])
    assert outcome.status == 0, outcome
    assert_equal(results, [rows[index[:3].long()]])
    slots = ids(6, 2)
    _, (sorted_rows, places) = permute(rows[:6], slots)
    outcome, results = unpermute(sorted_rows, places, torch.full((6, 2), 0.5, dtype=dtype))
    assert outcome.status == 0, outcome
    assert_equal(results, [rows[:6]])


@pytest.mark.parametrize(
    "changes, status, sentence",
    [
        ({"padded": True}, 161002, "paddedMode must be false, true is not implemented"),
        ({"index": ids(4, 2)}, 161002, r"sortedIndices 1 and probsOptional 2, got \(8, 4\), \(4, 2\), \(4, 2\)"),
        ({"index": ids(8).long()}, 161002, "row_idx must be int32, got int64"),
        ({"tokens": 3}, 161002, r"out must be ND, of shape \(4, 4\), got \(3, 4\)"),
        ({"index": ids(8, low=-5, high=-4)}, 361001, "-5"),
    ],
)
def test_moe_token_unpermute_refuses(changes, status, sentence):
    args = {"rows": some(8, 4), "index": ids(8, low=0), "probs": torch.rand(4, 2)} | changes
    outcome, _ = unpermute(**args)
    assert outcome.status == status, outcome
    assert re.search(sentence, outcome.sentence), outcome


def compute_expert_tokens(experts, count, outputs=None):
    shape = [count] if outputs is None else outputs
    return run(
        "aclnnMoeComputeExpertTokens", [experts], [(shape, torch.int32)], lambda x, out: [x, integer(count), out]
    )


@pytest.mark.parametrize("slots", [0, 1, 50])
def test_moe_compute_expert_tokens(slots):
    experts = ids(slots, low=0, high=9).sort().values
    for count in (1, 5, 9, 20):
        outcome, results = compute_expert_tokens(experts, count)
        assert outcome.status == 0, outcome
        assert_equal(results, [torch.searchsorted(experts, torch.arange(count).int(), right=True).int()])


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ((ids(4), 0), "numExperts must be at least 1, got 0"),
        ((ids(4), 2**40, [3]), r"out must have shape \(1099511627776,\), got \(3,\)"),
        ((ids(2, 2), 3), r"sortedExperts must be ND with 1 axis and out ND, got \(2, 2\)"),
        ((ids(4).long(), 3), "sortedExperts must be int32, got int64"),
    ],
)
def test_moe_compute_expert_tokens_refuses(arguments, sentence):
    outcome, _ = compute_expert_tokens(*arguments)
    assert outcome.status == 161002, outcome
    assert re.search(sentence, outcome.sentence), outcome
