# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import builtins
from fractions import Fraction

import case_table
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import anynpu


def call(function, args):
    return function(**{"zero_points": None, **args})


@case_table.valid_calls("quantize")
def test_equals_reference(case, isa, each_thread_count):
    expected = call(anynpu.reference.quantize, case.args)
    before = case.args["x"].clone()
    for y in each_thread_count(lambda: call(anynpu.quantize, case.args)):
        assert y.dtype == expected.dtype
        assert torch.equal(y, expected)
    torch.testing.assert_close(case.args["x"], before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("function", [anynpu.quantize, anynpu.reference.quantize], ids=["cpu", "reference"])
@case_table.invalid_calls("quantize")
def test_invalid_call_raises(case, function):
    with pytest.raises(getattr(builtins, case.error["python"]), match=case.error["match"]):
        call(function, case.args)


def as_float32(value: Fraction) -> Fraction:
    """The nearest float32, half to even, of a fraction in its normal range."""
    if value == 0:
        return value
    spacing = Fraction(2) ** -149
    while abs(value) / spacing >= 2**24:
        spacing *= 2
    return round(value / spacing) * spacing


small = st.floats(-(2.0**40), 2.0**40, width=32, allow_subnormal=False)


@given(small, small.filter(lambda scale: abs(scale) > 1e-9), st.integers(-(2**31), 2**31 - 1))
def test_division_by_fractions(x, scale, zero_point):
    quotient = as_float32(Fraction(x) / Fraction(scale))
    expected = min(max(round(quotient) + zero_point, -(2**31)), 2**31 - 1)
    zero_points = torch.tensor([zero_point], dtype=torch.int32)
    y = anynpu.quantize(torch.tensor([x]), torch.tensor([scale]), zero_points, torch.int32, 0)
    assert y.item() == expected


@given(small, small, small)
def test_multiplication_by_fractions(x, scale, zero_point):
    value = as_float32(as_float32(Fraction(x) * Fraction(scale)) + Fraction(zero_point))
    expected = min(max(round(value), -128), 127)
    y = anynpu.quantize(*torch.tensor([[x], [scale], [zero_point]]), torch.int8, -1, False)
    assert y.item() == expected


def test_multiply_then_add_is_never_fused(isa):
    """Operands whose fused and separate results lie on different sides of a tie."""
    generator = torch.Generator().manual_seed(0)
    x, scale = torch.rand(2, 1 << 16, generator=generator) + 1
    zero_point = 0.5 - (x * scale) + torch.randint(-9, 9, x.shape, generator=generator)
    separate = x * scale + zero_point
    fused = (x.double() * scale.double() + zero_point.double()).float()
    assert (separate.round() != fused.round()).sum() > 1000
    y = anynpu.quantize(x, scale, zero_point, torch.int8, -1, False)
    assert torch.equal(y, separate.round().to(torch.int8))


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 2**31))
def test_int4_words_unpack_to_the_codes(rows, words, seed):
    x = 6 * torch.randn(rows, 8 * words, generator=torch.Generator().manual_seed(seed))
    one = torch.ones(1)
    packed = anynpu.quantize(x, one, None, torch.quint4x2, -1, False)
    assert torch.equal(anynpu.int4_unpack(packed, torch.int8), anynpu.quantize(x.clamp(-8, 7), one, None, torch.int8))
