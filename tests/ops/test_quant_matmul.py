# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import builtins

import case_table
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import anynpu
from anynpu.ops.quant_matmul.reference import error_bound, round_once

CASES = case_table.load("quant_matmul")
VALID = [case for case in CASES if case.error is None]
INVALID = [case for case in CASES if case.error is not None]


def names(cases):
    return [case.name for case in cases]


def assert_close(result, expected, bound):
    assert result.dtype == expected.dtype
    assert result.shape == expected.shape
    same = result == expected
    difference = (result.double() - expected.double()).abs()
    assert torch.all(same | (difference <= bound)), f"worst excess {(difference - bound)[~same].max()}"


@pytest.mark.parametrize("case", VALID, ids=names(VALID))
def test_equals_reference(case, isa, each_thread_count):
    args = case.args
    expected, bound = anynpu.reference.quant_matmul(**args), error_bound(**args)
    results = each_thread_count(lambda: anynpu.quant_matmul(**args))
    for result in results:
        assert_close(result, expected, bound)
        assert torch.equal(result, results[0])


@pytest.mark.parametrize("function", [anynpu.quant_matmul, anynpu.reference.quant_matmul], ids=["cpu", "reference"])
@pytest.mark.parametrize("case", INVALID, ids=names(INVALID))
def test_invalid_call_raises(case, function):
    with pytest.raises(getattr(builtins, case.error["python"]), match=case.error["match"]):
        function(**case.args)


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


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_groups_have_scales_of_their_own(dtype, transposed, isa):
    """Each of G terms rounds twice, their sum G - 1 times, offset and token scale once each: (G + 4) units of 2^-24
    of the sum of the magnitudes, before a rounding to the output that may go to either neighbour."""
    x1 = torch.randint(-128, 128, (7, 768), dtype=torch.int8, generator=torch.Generator().manual_seed(2))
    words, values = int4_words(*((40, 768) if transposed else (768, 40)), seed=3)
    x2, right = (words.t(), values.t()) if transposed else (words, values)
    scale = torch.rand(3, 40, generator=torch.Generator().manual_seed(4)) * 1e-2
    encoded = torch.stack([anynpu.trans_quant_param(row) for row in scale])
    offset, token = torch.randn(40), torch.rand(7, 1) + 0.5
    keywords = {"offset": offset, "pertoken_scale": token, "output_dtype": dtype, "group_size": 256}
    result = anynpu.quant_matmul(x1, x2, encoded, **keywords)
    expected = anynpu.reference.quant_matmul(x1, x2, encoded, **keywords)
    factors = (encoded & 0xFFFFFFFF).to(torch.uint32).view(torch.float32).double()
    sums = [x1[:, k : k + 256].double() @ right[k : k + 256].double() for k in range(0, 768, 256)]
    magnitude = sum((part * factor).abs() for part, factor in zip(sums, factors, strict=True)) + offset.abs()
    error = (3 + 4) * 2.0**-24 * magnitude * token.double()
    assert_close(result, expected, error + torch.finfo(dtype).eps * expected.double().abs())
    exact = (sum(part * factor for part, factor in zip(sums, factors, strict=True)) + offset) * token
    assert_close(expected, exact.to(dtype), torch.finfo(dtype).eps * exact.abs())


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
