# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import math

import case_table
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import anynpu
from anynpu.ops.cast.spec import DTYPES

FLOATS = [dtype for dtype in DTYPES if dtype.is_floating_point]


def assert_same(actual, expected):
    assert actual.dtype == expected.dtype and actual.is_contiguous()
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


@case_table.valid_calls("cast")
def test_equals_reference(case, isa, each_thread_count):
    expected = anynpu.reference.cast(**case.args)
    before = case.args["x"].clone()
    for y in each_thread_count(lambda: anynpu.cast(**case.args)):
        assert_same(y, expected)
    torch.testing.assert_close(case.args["x"], before, rtol=0, atol=0, equal_nan=True)


def random_bits(dtype, count):
    bits = torch.randint(-(2**63), 2**63 - 1, (count,), generator=torch.Generator().manual_seed(1))
    return bits.view(torch.uint8)[:count] % 2 == 1 if dtype == torch.bool else bits.view(dtype)[:count]


@pytest.mark.parametrize("pair", list(itertools.product(DTYPES, DTYPES)), ids=lambda pair: f"{pair[0]}-{pair[1]}")
def test_every_pair_on_random_bits(pair, isa):
    x = random_bits(pair[0], 1501)
    assert_same(anynpu.cast(x, pair[1]), anynpu.reference.cast(x, pair[1]))


@pytest.mark.parametrize("target", FLOATS)
@pytest.mark.parametrize("source", [torch.float16, torch.bfloat16])
def test_every_16_bit_float(source, target, isa):
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(source)
    assert_same(anynpu.cast(x, target), x.to(target))


@pytest.mark.parametrize("target", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("source", [torch.float32, torch.float64])
def test_around_every_tie(source, target, isa):
    """Two neighbours of the target, the value half-way between them, and the values just below and above it."""
    bits = torch.arange(0, torch.tensor(math.inf, dtype=target).view(torch.int16).item() - 1).to(torch.int16)
    low, high = bits.view(target).double(), (bits + 1).view(target).double()
    tie = ((low + high) / 2).to(source)
    towards = [torch.full_like(tie, bound) for bound in (-math.inf, math.inf)]
    even = torch.where(bits % 2 == 0, low, high)
    for x, expected in [(tie, even), (tie.nextafter(towards[0]), low), (tie.nextafter(towards[1]), high)]:
        for sign in (1, -1):
            assert torch.equal(anynpu.cast(sign * x, target).double(), sign * expected)


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 62))
def test_large_integers_round_once(value, shift):
    x = torch.tensor([value >> shift, (value >> shift << shift) + 1 - 2 * (value > 0)])
    for dtype in (torch.float16, torch.bfloat16):
        assert_same(anynpu.cast(x, dtype), anynpu.reference.cast(x, dtype))


@given(st.floats(), st.sampled_from([dtype for dtype in DTYPES if not dtype.is_floating_point]))
def test_any_double_to_integer(value, dtype):
    x = torch.tensor([value], dtype=torch.float64)
    assert_same(anynpu.cast(x, dtype), anynpu.reference.cast(x, dtype))


@pytest.mark.parametrize("dtype", [torch.int8, torch.float16, torch.float32, torch.int64])
def test_strided_views(dtype, isa):
    x = (100 * torch.randn(6, 7, 8, 9, generator=torch.Generator().manual_seed(0))).to(dtype)
    views = [
        x.permute(3, 1, 0, 2),
        x[::2, 1::3],
        x.transpose(0, 3)[..., ::2],
        x[:, :, :1].expand(6, 7, 8, 9),
        x[0, 0, 0, 0],
    ]
    for view in views:
        assert_same(anynpu.cast(view, torch.float64), view.to(torch.float64).contiguous())
