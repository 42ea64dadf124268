# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import case_table
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import anynpu


@case_table.valid_calls("int4_pack")
def test_equals_reference(case, isa, each_thread_count):
    expected = anynpu.reference.int4_pack(**case.args)
    before = case.args["weight"].clone()
    for packed in each_thread_count(lambda: anynpu.int4_pack(**case.args)):
        assert torch.equal(packed, expected)
    assert torch.equal(case.args["weight"], before)


def int4_matrices():
    shapes = st.tuples(st.integers(1, 40), st.integers(1, 20).map(lambda words: 8 * words))
    return shapes.flatmap(lambda shape: st.integers(0, 2**32 - 1).map(lambda seed: random_int4(shape, seed)))


def random_int4(shape, seed):
    return torch.randint(-8, 8, shape, dtype=torch.int32, generator=torch.Generator().manual_seed(seed))


@given(int4_matrices())
def test_unpack_inverts_pack(weight):
    assert torch.equal(anynpu.int4_unpack(anynpu.int4_pack(weight)), weight)
    as_bytes = anynpu.int4_pack(weight, torch.uint8)
    assert torch.equal(anynpu.int4_unpack(as_bytes, torch.int8), weight.to(torch.int8))
    assert torch.equal(as_bytes.view(torch.int32), anynpu.int4_pack(weight))


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=8, max_size=8))
def test_any_word_unpacks_and_packs_back(words):
    packed = torch.tensor([words], dtype=torch.int32)
    assert torch.equal(anynpu.int4_pack(anynpu.int4_unpack(packed)), packed)


@given(st.integers(0, 5 * 72 - 1), st.integers(8, 2**31 - 1) | st.integers(-(2**31), -9))
def test_value_outside_is_named(position, value):
    weight = torch.zeros(5, 72, dtype=torch.int32)
    weight.view(-1)[position] = value
    with pytest.raises(ValueError, match=rf"got {value} at \[{position // 72}, {position % 72}\]"):
        anynpu.int4_pack(weight)


def test_unpack_equals_reference(isa):
    packed = torch.randint(-(2**31), 2**31, (37, 19), generator=torch.Generator().manual_seed(1)).to(torch.int32)
    for dtype in (torch.int32, torch.int8):
        assert torch.equal(anynpu.int4_unpack(packed, dtype), anynpu.reference.int4_unpack(packed, dtype))


@pytest.mark.parametrize(
    ("packed", "dtype", "error", "match"),
    [
        (torch.zeros(2, 2, dtype=torch.int64), torch.int32, TypeError, "packed must be int32 or uint8, got int64"),
        (torch.zeros(2, 2, dtype=torch.int32), torch.int16, TypeError, "dtype must be int32 or int8, got int16"),
        (torch.zeros(2, dtype=torch.int32), torch.int32, ValueError, "packed must have 2 or 3 axes, got 1"),
        (torch.zeros(0, 2, dtype=torch.int32), torch.int32, ValueError, "packed must not be empty"),
        (torch.zeros(2, 3, dtype=torch.int32).t(), torch.int32, ValueError, "packed should be contiguous"),
    ],
)
def test_unpack_invalid_call_raises(packed, dtype, error, match):
    with pytest.raises(error, match=match):
        anynpu.int4_unpack(packed, dtype)
