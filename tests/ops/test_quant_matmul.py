# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import case_table
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import anynpu
from anynpu.ops.quant_matmul.reference import error_bound, round_once


def assert_close(result, expected, bound):
    assert result.dtype == expected.dtype
    assert result.shape == expected.shape
    same = result == expected
    difference = (result.double() - expected.double()).abs()
    assert torch.all(same | (difference <= bound)), f"worst excess {(difference - bound)[~same].max()}"


@case_table.valid_calls("quant_matmul")
def test_equals_reference(case, isa, each_thread_count):
    args = case.args
    expected, bound = anynpu.reference.quant_matmul(**args), error_bound(**args)
    results = each_thread_count(lambda: anynpu.quant_matmul(**args))
    for result in results:
        assert_close(result, expected, bound)
        assert torch.equal(result, results[0])


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 30), st.integers(1, 300), st.integers(1, 150), st.booleans(), st.integers(0, 2**31))
def test_any_shape_is_exact(m, k, n, transposed, seed):
    generator = torch.Generator().manual_seed(seed)
    x1 = torch.randint(-128, 128, (m, k), dtype=torch.int8, generator=generator)
    x2 = torch.randint(-128, 128, (n, k) if transposed else (k, n), dtype=torch.int8, generator=generator)
    x2 = x2.t() if transposed else x2
    scale = torch.rand(n, generator=generator)
    for dtype in (torch.float16, torch.int32):
        expected = anynpu.reference.quant_matmul(x1, x2, scale, output_dtype=dtype)
        assert torch.equal(anynpu.quant_matmul(x1, x2, scale, output_dtype=dtype), expected)


@pytest.mark.parametrize("rows", [1, 4, 5, 12, 16])
@pytest.mark.parametrize("k", [4096, 4099, 9000])
def test_few_rows_times_long_columns_are_exact(rows, k, isa):
    generator = torch.Generator().manual_seed(k + rows)
    x, weight = (torch.randint(-128, 128, (n, k), dtype=torch.int8, generator=generator) for n in (rows, 133))
    sums = anynpu.quant_matmul(x, weight.t(), torch.ones(1), output_dtype=torch.int32)
    assert torch.equal(sums.double(), x.double() @ weight.double().t())


@pytest.mark.parametrize("rows", [1, 2, 5, 7, 18, 19, 33, 50, 130])
@pytest.mark.parametrize("k", [1, 30, 260, 1030, 4100])
def test_prepacked_weights_give_the_same_bits(rows, k, isa, each_thread_count):
    generator = torch.Generator().manual_seed(k + rows)
    x = torch.randint(-128, 128, (rows, k), dtype=torch.int8, generator=generator)
    for n in (1, 32, 33, 65, 100, 1153):  # whole panels, halves of them, and columns for more than one thread
        weight = torch.randint(-128, 128, (k, n), dtype=torch.int8, generator=generator)
        blob, scale = anynpu.weight_quant_prepack(weight), torch.rand(n, generator=generator) * 1e-2
        for dtype in (torch.int32, torch.int8, torch.bfloat16):
            expected = anynpu.quant_matmul(x, weight, scale, output_dtype=dtype)
            for result in each_thread_count(
                lambda blob=blob, scale=scale, dtype=dtype, n=n: anynpu.quant_matmul(
                    x, blob, scale, output_dtype=dtype, n=n
                )
            ):
                assert torch.equal(result, expected)
        assert torch.equal(
            anynpu.reference.quant_matmul(x, blob, scale, output_dtype=torch.int32, n=n).double(),
            x.double() @ weight.double(),
        )


def test_extreme_values_at_the_largest_k(isa):
    x1 = torch.full((2, 131071), -128, dtype=torch.int8)
    x2 = torch.full((131071, 3), -128, dtype=torch.int8)
    x2[:, 1] = 127
    result = anynpu.quant_matmul(x1, x2, torch.ones(1), output_dtype=torch.int32)
    assert result.tolist() == [[128 * 128 * 131071, -128 * 127 * 131071, 128 * 128 * 131071]] * 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_results_round_once(dtype, isa):
    """Products that lie close beside a tie of the output: rounding through float32 would get them wrong."""
    sums = torch.arange(1, 4001)
    x1 = torch.stack([sums // 127, sums % 127], dim=1).to(torch.int8)
    x2 = torch.tensor([[127], [1]], dtype=torch.int8)
    scale = torch.tensor([1 + 2.0**-11 + 2.0**-23], dtype=torch.float32)
    expected = round_once(sums.double().unsqueeze(1) * scale.double(), dtype)
    assert torch.equal(anynpu.quant_matmul(x1, x2, scale, output_dtype=dtype), expected)


def test_the_offset_in_a_word_is_for_int8():
    x1, x2 = torch.zeros(1, 4, dtype=torch.int8), torch.zeros(4, 2, dtype=torch.int8)
    word = anynpu.trans_quant_param(torch.tensor([0.5, 0.25]), torch.tensor([3.0, -7.0]))
    assert anynpu.quant_matmul(x1, x2, word).tolist() == [[3, -7]]
    assert anynpu.quant_matmul(x1, x2, word, output_dtype=torch.float16).tolist() == [[0, 0]]
    assert anynpu.quant_matmul(x1, x2, word, offset=torch.tensor([1.0])).tolist() == [[1, 1]]


def test_bias_that_could_overflow_is_refused():
    x1, x2 = torch.zeros(1, 4, dtype=torch.int8), torch.zeros(4, 2, dtype=torch.int8)
    bias = torch.tensor([0, 2**31 - 1], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"\|bias\| must be at most .* = 2147418111 .*, got 2147483647 at 1"):
        anynpu.quant_matmul(x1, x2, torch.ones(1), bias=bias, output_dtype=torch.float16)


def int4_words(*shape, seed):
    """Packed along the last axis, and the values."""
    values = torch.randint(-8, 8, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.int32)
    return anynpu.int4_pack(values), values.to(torch.int8)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("x1_bits", [4, 8])
@pytest.mark.parametrize(
    "options", [{"output_dtype": torch.float16}, {"output_dtype": torch.bfloat16, "pertoken": True}]
)
def test_int4_equals_the_product_of_its_values(transposed, x1_bits, options, isa):
    words, values = int4_words(5, 320, seed=0)
    x1, left = (words, values) if x1_bits == 4 else (values * 15, values * 15)
    words, values = int4_words(*((72, 320) if transposed else (320, 72)), seed=1)
    x2, right = (words.t(), values.t()) if transposed else (words, values)
    scale, bias = torch.rand(72) * 1e-2, torch.arange(72, dtype=torch.int32)
    keywords = {"bias": bias, "output_dtype": options["output_dtype"]}
    if "pertoken" in options:
        keywords |= {"bias": None, "pertoken_scale": torch.rand(5)}
    result = anynpu.quant_matmul(x1, x2, scale, **keywords)
    assert torch.equal(result, anynpu.quant_matmul(left, right, scale, **keywords))
    bound = error_bound(left, right, scale, **keywords)
    assert_close(result, anynpu.reference.quant_matmul(x1, x2, scale, **keywords), bound)


@pytest.mark.parametrize("rows", [1, 2, 4, 5, 11, 12, 13, 16, 31, 64, 525])
@pytest.mark.parametrize("group_size", [0, 32, 96, 256, 320])
def test_int4_layouts_give_equal_bits(rows, group_size, isa, each_thread_count):
    generator = torch.Generator().manual_seed(rows)
    x1 = torch.randint(-128, 128, (rows, 1160), dtype=torch.int8, generator=generator)
    words, values = int4_words(1160, 136, seed=3)
    along_k = anynpu.int4_pack(values.t().contiguous().int()).t()
    groups = -(-1160 // group_size) if group_size else 1
    scale = torch.rand((groups, 136) if group_size else 136, generator=generator) * 1e-2
    keywords = {"pertoken_scale": torch.rand(rows), "output_dtype": torch.float32, "group_size": group_size}
    expected = anynpu.reference.quant_matmul(x1, words, scale, **keywords)
    bound = error_bound(x1, words, scale, **keywords)
    results = []
    for x2, n in ((words, None), (along_k, None), (anynpu.weight_quant_prepack(words), 136)):
        results += each_thread_count(lambda x2=x2, n=n: anynpu.quant_matmul(x1, x2, scale, **keywords, n=n))
        assert_close(results[-1], expected, bound)
    assert all(torch.equal(result, results[0]) for result in results)


def test_few_int4_rows_in_the_last_chunk(isa):
    """So many rows are packed 516 at a time, and then seven: fewer than one tile of few rows, in tiles of many."""
    generator = torch.Generator().manual_seed(0)
    x1 = torch.randint(-128, 128, (43351, 64), dtype=torch.int8, generator=generator)
    words, _ = int4_words(64, 32, seed=1)
    keywords = {"output_dtype": torch.float16, "group_size": 32}
    scale = torch.rand(2, 32, generator=generator) * 1e-2
    result = anynpu.quant_matmul(x1, anynpu.weight_quant_prepack(words), scale, **keywords, n=32)
    assert torch.equal(result, anynpu.quant_matmul(x1, words, scale, **keywords))
    last = anynpu.quant_matmul(x1[-7:], words, scale, **keywords)
    assert_close(
        last,
        anynpu.reference.quant_matmul(x1[-7:], words, scale, **keywords),
        error_bound(x1[-7:], words, scale, **keywords),
    )
    assert torch.equal(result[-7:], last)


@pytest.mark.parametrize("k", [16384, 131071])
def test_extreme_int4_sums(k, isa):
    """Sums of up to 2^24 are exact, those of 2^27 within their bound."""
    x1 = torch.full((2, k), -128, dtype=torch.int8)
    x1[1, ::2] = 127
    values = torch.full((k, 8), -8, dtype=torch.int32)
    values[::3, 1] = 7
    args = (x1, anynpu.int4_pack(values), torch.ones(8))
    result = anynpu.quant_matmul(*args, output_dtype=torch.float32)
    expected = anynpu.reference.quant_matmul(*args, output_dtype=torch.float32)
    assert_close(result, expected, error_bound(*args, output_dtype=torch.float32))
    if k == 16384:
        assert torch.equal(result, expected)


@pytest.mark.parametrize("parity", [0, 2])
@pytest.mark.parametrize("last", [-127, -128, 127])
def test_int4_sums_that_int16_just_holds_or_not(parity, last, isa, each_thread_count):
    """32 values of a block meet in one int16 in AVX2: weights less 8 times 4096 are one too many for it."""
    x1 = torch.zeros(5, 256, dtype=torch.int8)
    x1[1, parity:128:4] = -128
    x1[1, 124 + parity] = last
    x1[2, 128 + parity : 256 : 4] = 127
    x1[4, parity + 1 : 256 : 4] = -x1[1, parity::4].clamp(min=-127)
    values = torch.full((256, 40), -8, dtype=torch.int32)
    values[:, 1::2] = 7
    words = anynpu.int4_pack(values)
    keywords = {"output_dtype": torch.float32, "group_size": 128}
    scale = torch.tensor([[1.0], [2.0]]).repeat(1, 40)
    expected = anynpu.reference.quant_matmul(x1, words, scale, **keywords)
    for x2, n in ((words, None), (anynpu.weight_quant_prepack(words), 40)):
        for rows in (slice(1, 2), slice(0, 5)):
            for result in each_thread_count(
                lambda x2=x2, n=n, rows=rows: anynpu.quant_matmul(x1[rows], x2, scale, **keywords, n=n)
            ):
                assert torch.equal(result, expected[rows])


def test_a_prepacked_weight_must_be_that_of_k_and_n():
    words, _ = int4_words(64, 32, seed=5)
    blob = anynpu.weight_quant_prepack(words)
    x1 = torch.ones(1, 32, dtype=torch.int8)
    for function in (anynpu.quant_matmul, anynpu.reference.quant_matmul):
        with pytest.raises(ValueError, match=r"prepacked x2 is \(64, 32\).*, but x1 has K 32 and y has N 64"):
            function(x1, blob, torch.ones(1), output_dtype=torch.float16, n=64)


def test_prepacked_int8_compiles_and_takes_no_rows():
    weight = torch.randint(-128, 128, (96, 40), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    blob = anynpu.weight_quant_prepack(weight)

    def product(x):
        return anynpu.quant_matmul(x, blob, torch.ones(1), n=40)

    x = torch.ones(3, 96, dtype=torch.int8)
    compiled = torch.compile(product, fullgraph=True, dynamic=True, backend="aot_eager")
    assert torch.equal(compiled(x), anynpu.quant_matmul(x, weight, torch.ones(1)))
    assert product(x[:0]).shape == (0, 40)


def test_int4_compiles_and_takes_no_rows():
    words, _ = int4_words(256, 16, seed=5)
    scale = torch.full((1, 16), 0.5).view(torch.int32).long()

    def grouped(x):
        return anynpu.quant_matmul(x, words, scale, output_dtype=torch.float16, group_size=256)

    compiled = torch.compile(grouped, fullgraph=True, backend="aot_eager")
    x = torch.ones(3, 256, dtype=torch.int8)
    assert torch.equal(compiled(x), grouped(x))
    assert grouped(x[:0]).shape == (0, 16)
    empty = anynpu.quant_matmul(torch.empty(0, 32, dtype=torch.int32), words, torch.ones(1), output_dtype=torch.float16)
    assert empty.shape == (0, 16)
