# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import builtins

import case_table
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import anynpu
from anynpu.ops.quant_matmul.reference import round_once
from anynpu.ops.quant_matmul.spec import error_bound

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
