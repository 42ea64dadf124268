# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import case_table
import pytest
import torch
import torch.nn.functional as F
from fences import fenced_copy
from hypothesis import given, settings
from hypothesis import strategies as st

import anynpu
from anynpu._register import operators
from anynpu.ops.kv_cache_attention.spec import sample_arguments

OPERATOR = operators["kv_cache_attention"]


def assert_within_bounds(result, args):
    expected = anynpu.reference.kv_cache_attention(**args)
    assert result.dtype == expected.dtype and result.shape == expected.shape
    same = (result == expected) | (result.isnan() & expected.isnan())
    right = same | ((result.double() - expected.double()).abs() <= OPERATOR.error_bound(**args))
    assert right.all(), f"{int((~right).sum())} of {right.numel()} elements are wrong"


@case_table.valid_calls("kv_cache_attention")
def test_is_within_bounds_of_reference(case, isa, each_thread_count):
    before = {key: value.clone() for key, value in case.args.items() if isinstance(value, torch.Tensor)}
    first, *others = each_thread_count(lambda: anynpu.kv_cache_attention(**case.args))
    assert_within_bounds(first, case.args)
    for other in others:
        assert torch.equal(first, other)
    for key, value in before.items():
        assert torch.equal(case.args[key], value), key


@st.composite
def calls(draw):
    batch, length = draw(st.integers(1, 3)), draw(st.integers(1, 20))
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    head_size = draw(st.integers(1, 70))
    dtype = draw(st.sampled_from([torch.float16, torch.bfloat16, torch.float32]))
    rows = length + draw(st.integers(0, 300))
    lengths = draw(st.lists(st.integers(length, rows), min_size=batch, max_size=batch))
    seed = draw(st.integers(0, 2**31))
    args = sample_arguments(batch, length, (kv_heads * group, kv_heads), head_size, dtype, (batch, rows), lengths, seed)
    generator = torch.Generator().manual_seed(seed)
    if draw(st.booleans()):
        args["offset_v"] = torch.randn(kv_heads, head_size, generator=generator) * 30
    if draw(st.booleans()):
        starts = [draw(st.integers(0, limit)) for limit in lengths]
        args["starts"] = torch.tensor(starts, dtype=torch.int32)
    return {**args, "causal": draw(st.booleans())}


@given(calls())
@settings(max_examples=60, deadline=None)
def test_any_valid_call_is_within_bounds_of_reference(args):
    assert_within_bounds(anynpu.kv_cache_attention(**args), args)


@pytest.mark.parametrize("length", [1, 9, 70])
def test_reference_equals_sdpa_on_the_dequantised_cache(length):
    """An independent definition: torch's float64 attention, with its own handling of heads and masks."""
    args = sample_arguments(2, length, (6, 2), 32, torch.float32, (2, 200), [200, 111])
    offset = torch.linspace(-50, 50, 64).reshape(2, 32)
    result = anynpu.reference.kv_cache_attention(**args, offset_k=offset, offset_v=-offset)
    for batch, rows in enumerate([200, 111]):
        k = ((args["k_cache"][batch, :rows].double() - offset) * args["scale_k"].double()).transpose(0, 1)
        v = ((args["v_cache"][batch, :rows].double() + offset) * args["scale_v"].double()).transpose(0, 1)
        mask = torch.ones(length, rows, dtype=torch.bool).tril(rows - length)
        q = args["q"][batch].double().transpose(0, 1)
        expected = F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=mask, enable_gqa=True)[0]
        torch.testing.assert_close(result[batch].double(), expected.transpose(0, 1), rtol=1e-6, atol=1e-6)


def test_paged_equals_contiguous(isa):
    args = sample_arguments(2, 3, (4, 2), 32, torch.float16, (2, 96), [96, 50])
    expected = anynpu.kv_cache_attention(**args)
    blocks = torch.randperm(12, generator=torch.Generator().manual_seed(0)).to(torch.int32).reshape(2, 6)
    for name in ("k_cache", "v_cache"):
        paged = torch.zeros(12, 16, 2, 32, dtype=torch.int8)
        paged[blocks.long()] = args[name].unflatten(1, (6, 16))
        args[name] = paged
    assert torch.equal(anynpu.kv_cache_attention(**args, block_table=blocks), expected)


def test_reads_what_rope_kv_cache_wrote(isa):
    """Write, then attend: near what float attention over the unquantised keys and values gives."""
    generator = torch.Generator().manual_seed(0)
    tokens, heads, size = 40, 2, 64
    k, v = torch.randn(2, tokens, heads, size, generator=generator)
    q = torch.randn(1, 1, heads, size, generator=generator)
    scale = torch.full((heads, size), 5 / 127)
    k_cache, v_cache = torch.zeros(2, 1, 64, heads, size, dtype=torch.int8)
    x = torch.cat([k.flatten(1), v.flatten(1)], dim=-1).unsqueeze(0)
    cos, sin = torch.ones(1, tokens, 1, size), torch.zeros(1, tokens, 1, size)
    first = torch.zeros(1, dtype=torch.int32)
    splits = [0, heads * size, heads * size]
    anynpu.rope_kv_cache(x, cos, sin, k_cache, v_cache, first, scale, scale, splits)
    rows = torch.tensor([tokens], dtype=torch.int32)
    result = anynpu.kv_cache_attention(q, k_cache, v_cache, rows, scale, scale)
    expected = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(0, 1)[None], v.transpose(0, 1)[None])
    assert (result.transpose(1, 2) - expected).abs().max() < 5 / 127


@pytest.mark.parametrize("length", [1, 20])
def test_unused_rows_and_other_sequences_do_not_matter(length, isa):
    args = sample_arguments(2, length, (4, 2), 32, torch.float16, (2, 300), [280, 60])
    expected = anynpu.kv_cache_attention(**args)
    args["k_cache"][0, 280:] = 127
    args["v_cache"][1, 60:] = -128
    assert torch.equal(anynpu.kv_cache_attention(**args), expected)
    args["k_cache"][0, :280] = 1
    assert torch.equal(anynpu.kv_cache_attention(**args)[1], expected[1])


@pytest.mark.parametrize("head_size", [8, 48, 80, 100])
@pytest.mark.parametrize("q_heads", [1, 4, 24])
def test_nothing_is_read_past_the_end_of_the_caches(head_size, q_heads, isa):
    args = sample_arguments(1, 1, (q_heads, 1), head_size, torch.bfloat16, (1, 21), [21])
    for name in ("k_cache", "v_cache"):
        args[name] = fenced_copy(args[name])
    assert_within_bounds(anynpu.kv_cache_attention(**args), args)


@pytest.mark.parametrize("head_size", [80, 300, 640])
@pytest.mark.parametrize("heads", [(1, 1), (14, 2)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_largest_codes_of_long_heads_are_summed_without_overflow(head_size, heads, dtype, isa):
    args = sample_arguments(1, 1, heads, head_size, dtype, (1, 300), [299])
    for name in ("k_cache", "v_cache"):
        args[name] = torch.where(args[name] > 0, 127, -128).to(torch.int8)
    assert_within_bounds(anynpu.kv_cache_attention(**args), args)
    args["k_cache"][:, ::3] = -128
    args["q"] = torch.full_like(args["q"], -0.5)
    assert_within_bounds(anynpu.kv_cache_attention(**args), args)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("length", [1, 20])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_special_values_of_q_stay_in_their_query(value, length, dtype, isa):
    args = sample_arguments(1, length, (4, 2), 32, dtype, (1, 300), [300])
    expected = anynpu.kv_cache_attention(**args)
    args["q"][0, 0, 1, 7] = value
    result = anynpu.kv_cache_attention(**args)
    assert result[0, 0, 1].isnan().all()
    expected[0, 0, 1] = result[0, 0, 1] = 0
    assert torch.equal(result, expected)


def test_large_scores_do_not_overflow(isa):
    args = sample_arguments(1, 1, (2, 1), 64, torch.float32, (1, 600), [600])
    args["q"] *= 1e4
    result = anynpu.kv_cache_attention(**args)
    assert result.isfinite().all()
    weights = torch.zeros(2, 600)
    scores = args["q"][0, 0].double() @ (args["k_cache"][0, :, 0].double() * args["scale_k"].double()).T
    weights[torch.arange(2), scores.argmax(-1)] = 1
    expected = weights @ (args["v_cache"][0, :, 0].float() * args["scale_v"])
    torch.testing.assert_close(result[0, 0], expected, rtol=1e-5, atol=1e-5)
