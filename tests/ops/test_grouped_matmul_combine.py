# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import case_table
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import anynpu
from anynpu.ops.grouped_matmul_combine.reference import error_bound


def codes(*shape, low=-128, high=128, seed=0):
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


def int4(*shape, seed=0):
    return codes(*shape, low=-8, high=8, seed=seed).int()


def reals(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_within(result, expected, bound):
    assert result.dtype == torch.float32
    assert result.shape == expected.shape
    difference = (result.double() - expected.double()).abs()
    assert torch.all(difference <= bound), f"worst excess {(difference - bound).max()}"


@case_table.valid_calls("grouped_matmul_combine")
def test_is_within_the_bound_of_the_reference(case, isa, each_thread_count):
    expected, bound = anynpu.reference.grouped_matmul_combine(**case.args), error_bound(**case.args)
    results = each_thread_count(lambda: anynpu.grouped_matmul_combine(**case.args))
    for result in results:
        assert_within(result, expected, bound)
        assert torch.equal(result, results[0])


@pytest.mark.parametrize("groups", [1, 4])
def test_the_documented_bias_gives_the_plain_product(groups, isa):
    """Small integers and powers of two: every float is exact, so the results are equal."""
    experts, k, n, m = 3, 128, 24, 10
    weight, x = int4(experts, k, n), codes(m, k).to(torch.int8)
    scale = torch.exp2(codes(experts, groups, n, low=-3, high=1).float())
    counts = torch.tensor([4, 1, 5])
    packed = anynpu.int4_pack(weight)
    result = anynpu.grouped_matmul_combine(
        x,
        packed,
        anynpu.pack_scale(scale),
        counts,
        torch.arange(m),
        bias=anynpu.make_w4a8_bias(packed, scale),
    )
    dense = weight.double() * scale.double().repeat_interleave(k // groups, dim=1)
    expert_of_row = torch.repeat_interleave(torch.arange(experts), counts)
    expected = torch.stack([row.double() @ dense[expert] for row, expert in zip(x, expert_of_row, strict=True)])
    assert torch.equal(result.double(), expected)


@pytest.mark.parametrize("n", [64, 128 * 7 + 64, 128 * 9, 128 * 33])
@pytest.mark.parametrize("k, groups", [(32, 1), (192, 1), (352, 1), (192, 3)])
def test_experts_of_few_and_many_rows(k, groups, n, isa, each_thread_count):
    """Rows of an expert meet every tile of a kernel, columns and k every panel; all floats are exact."""
    counts = torch.tensor([*range(11), 37] if n < 4096 else [2, 7, 0, 3])
    experts, m = len(counts), int(counts.sum())
    weight, x = int4(experts, k, n), codes(m, k).to(torch.int8)
    scale = torch.exp2(codes(experts, groups, n, low=-3, high=1).float())
    packed = anynpu.int4_pack(weight)
    bias = anynpu.make_w4a8_bias(packed, scale)
    dense = weight.double() * scale.double().repeat_interleave(k // groups, dim=1)
    expert_of_row = torch.repeat_interleave(torch.arange(experts), counts)
    expected = torch.stack([row.double() @ dense[expert] for row, expert in zip(x, expert_of_row, strict=True)])
    for result in each_thread_count(
        lambda: anynpu.grouped_matmul_combine(x, packed, anynpu.pack_scale(scale), counts, torch.arange(m), bias)
    ):
        assert torch.equal(result.double(), expected)


@pytest.mark.parametrize("value", [-128, -121, -120, 127])
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_extreme_values_do_not_overflow_partial_sums(rows, value, isa):
    k, n = 64, 2048
    x, weight = torch.full((rows, k), value, dtype=torch.int8), torch.full((1, k, n), 7).int()
    y = anynpu.grouped_matmul_combine(
        x, anynpu.int4_pack(weight), anynpu.pack_scale(torch.ones(1, 1, n)), torch.tensor([rows]), torch.arange(rows)
    )
    assert torch.equal(y, torch.full((rows, n), float((value - 8) * 7 * k)))


@pytest.mark.parametrize("k", [2**16, 2**16 + 32])
@pytest.mark.parametrize("rows", [1, 3, 6])
def test_long_groups_do_not_overflow(rows, k, isa):
    """AVX-512 keeps sums of odd columns 16 times as large, where they fit."""
    n = 2048 if rows == 1 else 128
    x, eights = (
        torch.full((rows, k), -128, dtype=torch.int8),
        torch.full((1, k, n // 8), -0x77777778, dtype=torch.int32),
    )
    y = anynpu.grouped_matmul_combine(
        x, eights, anynpu.pack_scale(torch.ones(1, 1, n)), torch.tensor([rows]), torch.arange(rows)
    )
    assert torch.equal(y, torch.full((rows, n), float((-128 - 8) * -8 * k)))


@pytest.mark.parametrize("total", [2184, 2185, -2184, -2185])
@pytest.mark.parametrize("pair", [0, 2])
def test_sums_over_two_blocks_stay_within_int16(pair, total, isa):
    """The values of two of four k in 64 meet in a word: 15 * 2184 fits it, 15 * 2185 does not."""
    rows, k, n = 5, 192, 128
    x, weight = torch.zeros(rows, k, dtype=torch.int8), torch.full((1, k, n), 7).int()
    words = x[rows - 1, 64:128].view(16, 4)[:, pair : pair + 2]
    words[:] = 68 if total > 0 else -68
    words[0, 0] += total - int(words.sum())
    y = anynpu.grouped_matmul_combine(
        x, anynpu.int4_pack(weight), anynpu.pack_scale(torch.ones(1, 1, n)), torch.tensor([rows]), torch.arange(rows)
    )
    expected = 7.0 * (x.sum(1) - 8 * k)
    assert torch.equal(y, expected[:, None].expand(rows, n))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("k, n", [(40, 33), (40, 2200), (352, 200), (1000, 1100), (36, 64), (1000, 1152)])
def test_int8_experts_of_few_and_many_rows(k, n, transposed, isa, each_thread_count):
    """Few rows are multiplied straight from the weight; all floats are exact."""
    counts = torch.tensor([*range(11), 16, 37])
    experts, m = len(counts), int(counts.sum())
    weight, x = codes(experts, k, n).to(torch.int8), codes(m, k).to(torch.int8)
    scale = torch.exp2(codes(experts, n, low=-3, high=1).float())
    expert_of_row = torch.repeat_interleave(torch.arange(experts), counts)
    expected = torch.stack(
        [row.double() @ weight[expert].double() * scale[expert] for row, expert in zip(x, expert_of_row, strict=True)]
    )
    if transposed:
        weight = weight.transpose(1, 2).contiguous().transpose(1, 2)
    for result in each_thread_count(lambda: anynpu.grouped_matmul_combine(x, weight, scale, counts, torch.arange(m))):
        assert torch.equal(result.double(), expected)


def test_more_experts_of_few_rows_than_sums_are_kept_of(isa):
    experts, rows, n = 150, 4, 2048
    x, weight = codes(experts * rows, 33).to(torch.int8), codes(experts, 33, n).to(torch.int8)
    arguments = (x, weight, torch.ones(experts, n), torch.full((experts,), rows), torch.arange(experts * rows))
    expected = torch.bmm(x.view(experts, rows, 33).double(), weight.double()).view(-1, n)
    assert torch.equal(anynpu.grouped_matmul_combine(*arguments).double(), expected)


def test_another_bias_comes_through_literally(isa):
    weight, x, counts = int4(2, 64, 16), codes(4, 64).to(torch.int8), torch.tensor([1, 3])
    scale = torch.ones(2, 1, 16)
    arguments = (x, anynpu.int4_pack(weight), anynpu.pack_scale(scale), counts, torch.arange(4))
    bias = codes(2, 16, low=-100000, high=100000).float()
    difference = anynpu.grouped_matmul_combine(*arguments, bias=bias) - anynpu.grouped_matmul_combine(*arguments)
    assert torch.equal(difference, bias.repeat_interleave(counts, dim=0))
    row = (x[0].long() @ weight[0].long()) - 8 * weight[0].long().sum(0) + bias[0].long()
    assert torch.equal(anynpu.grouped_matmul_combine(*arguments, bias=bias)[0].long(), row)


def test_offset_is_added_times_the_sum_of_the_row(isa):
    x = codes(3, 40).to(torch.int8)
    weight = anynpu.int4_pack(torch.zeros(1, 40, 8, dtype=torch.int32))
    offset = codes(1, 1, 8, low=-4, high=4).float()
    scale = anynpu.pack_scale(torch.ones(1, 1, 8))
    result = anynpu.grouped_matmul_combine(x, weight, scale, torch.tensor([3]), torch.arange(3), offset=offset)
    assert torch.equal(result, x.sum(1, dtype=torch.float32).unsqueeze(1) * offset[0])


def test_rows_are_added_in_ascending_order(isa, each_thread_count):
    """2^24 + 1 + 1 in this order is 2^24 in float32, 1 + 1 + 2^24 is 2^24 + 2."""
    x, weight = torch.ones(6, 1, dtype=torch.int8), torch.ones(3, 1, 1, dtype=torch.int8).expand(3, 1, 200).contiguous()
    logit = torch.tensor([2.0**24, 1, 1, 1, 1, 2.0**24])
    rows = torch.tensor([0, 1, 0, 1, 0, 1])
    for result in each_thread_count(
        lambda: anynpu.grouped_matmul_combine(
            x, weight, torch.ones(3, 200), torch.tensor([2, 2, 2]), rows, logit=logit, output_bs=2
        )
    ):
        assert torch.equal(result[0], torch.full((200,), 2.0**24))
        assert torch.equal(result[1], torch.full((200,), 2.0**24 + 2))


def test_rows_behind_the_groups_are_not_read(isa):
    x, weight, scale = codes(6, 32).to(torch.int8), codes(2, 32, 40).to(torch.int8), reals(2, 40)
    rows, factors = torch.tensor([1, 0, 1, -7, 99, 2**40]), torch.ones(6)
    factors[3:] = torch.nan
    result = anynpu.grouped_matmul_combine(
        x, weight, scale, torch.tensor([1, 2]), rows, logit=factors, pertoken_scale=factors, output_bs=3
    )
    expected = anynpu.grouped_matmul_combine(x[:3], weight, scale, torch.tensor([1, 2]), rows[:3], output_bs=3)
    assert torch.equal(result, expected)
    assert torch.equal(result[2], torch.zeros(40))


def test_many_experts_in_several_rounds(isa):
    """More pieces than are packed at once."""
    experts, rows = 1100, 2
    x, weight = codes(experts * rows, 32).to(torch.int8), codes(experts, 32, 8).to(torch.int8)
    arguments = (x, weight, reals(experts, 8), torch.full((experts,), rows), codes(experts * rows, low=0, high=7))
    expected, bound = anynpu.reference.grouped_matmul_combine(*arguments), error_bound(*arguments)
    assert_within(anynpu.grouped_matmul_combine(*arguments), expected, bound)


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 5),
    st.integers(1, 40),
    st.integers(1, 6),
    st.integers(1, 70),
    st.integers(1, 9),
    st.integers(0, 2**31),
)
def test_any_shape(experts, m, groups, group_size, words, seed):
    k, n = groups * group_size, words * 8
    borders = codes(experts, low=0, high=m + 1, seed=seed).sort().values
    weight = anynpu.int4_pack(int4(experts, k, n, seed=seed))
    arguments = (
        codes(m, k, seed=seed).to(torch.int8),
        weight,
        anynpu.pack_scale(reals(experts, groups, n, seed=seed)),
        borders,
        codes(m, low=0, high=m, seed=seed),
        reals(experts, n, seed=seed),
        reals(experts, 1, n, seed=seed),
        reals(m, seed=seed),
    )
    options = {"group_list_type": 0}
    expected = anynpu.reference.grouped_matmul_combine(*arguments, **options)
    result = anynpu.grouped_matmul_combine(*arguments, **options)
    assert_within(result, expected, error_bound(*arguments, **options))


@case_table.valid_calls("grouped_matmul_combine", lambda case: case.name == "W4A8 per group and everything")
def test_inputs_are_unchanged(case, isa):
    tensors = [tensor for tensor in case.args.values() if isinstance(tensor, torch.Tensor)]
    before = [tensor.clone() for tensor in tensors]
    anynpu.grouped_matmul_combine(**case.args)
    for tensor, copy in zip(tensors, before, strict=True):
        assert torch.equal(tensor, copy)


@pytest.mark.parametrize(
    "m, k, n, experts, batch, text",
    [
        (4, 64, 7168, 2, 4, "with int4 weights wants K = 2048, got 64"),
        (4, 2048, 64, 2, 4, "with int4 weights wants N = 7168, got 64"),
        (4, 2048, 7168, 257, 4, r"wants E in \[1, 256\], got 257"),
        (4, 2048, 7168, 2, 16385, "wants at most 16 .* rows of y, got 16385"),
        (131073, 2048, 7168, 2, 4, r"wants M in \[1, .* = 131072\], got 131073"),
        (0, 2048, 7168, 2, 4, r"wants M in \[1, .* = 131072\], got 0"),
    ],
)
def test_strict_limits(m, k, n, experts, batch, text):
    def on_meta(*shape, dtype):
        return torch.empty(shape, dtype=dtype, device="meta")

    arguments = (
        on_meta(m, k, dtype=torch.int8),
        on_meta(experts, k, n // 8, dtype=torch.int32),
        on_meta(experts, 1, n, dtype=torch.int64),
        on_meta(experts, dtype=torch.int64),
        on_meta(m, dtype=torch.int64),
    )
    assert torch.ops.anynpu.grouped_matmul_combine(*arguments, output_bs=batch).shape == (batch, n)
    with anynpu.strict("Ascend910B"), pytest.raises(ValueError, match=text):
        torch.ops.anynpu.grouped_matmul_combine(*arguments, output_bs=batch)
