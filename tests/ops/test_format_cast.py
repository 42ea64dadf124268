# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import case_table
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import anynpu
from anynpu.ops.cast.spec import DTYPES


@case_table.valid_calls("format_cast")
def test_equals_reference(case, each_thread_count):
    expected = anynpu.reference.nd_to_nz(**case.args)
    before = case.args["x"].clone()
    for storage in each_thread_count(lambda: anynpu.nd_to_nz(**case.args)):
        assert torch.equal(storage, expected)
    assert torch.equal(case.args["x"], before)


@case_table.valid_calls("format_cast")
def test_inverse_equals_reference(case, each_thread_count):
    x = case.args["x"]
    storage = anynpu.reference.nd_to_nz(**case.args)
    assert torch.equal(anynpu.reference.nz_to_nd(storage, x.shape), x)
    for back in each_thread_count(lambda: anynpu.nz_to_nd(storage, x.shape)):
        assert back.is_contiguous()
        assert torch.equal(back, x)


def test_layout_written_by_hand():
    x = torch.arange(17 * 9, dtype=torch.float32).reshape(17, 9)
    storage = anynpu.nd_to_nz(x)
    assert storage.shape == (2, 2, 16, 8)
    assert storage[0, 0, 3].tolist() == list(range(27, 35))
    assert storage[1, 0, 3].tolist() == [35, 0, 0, 0, 0, 0, 0, 0]
    assert storage[0, 1, 0].tolist() == list(range(144, 152))
    assert storage[1, 1].flatten().tolist() == [152] + 127 * [0]


@given(
    st.lists(st.integers(1, 3), max_size=2),
    st.integers(1, 40),
    st.integers(1, 70),
    st.one_of(st.none(), st.integers(1, 70)),
    st.sampled_from(DTYPES),
)
def test_round_trip(batch, rows, columns, c0, dtype):
    shape = [*batch, rows, columns]
    x = torch.randint(0, 100, shape, generator=torch.Generator().manual_seed(rows)).to(dtype)
    storage = anynpu.nd_to_nz(x, c0)
    assert torch.equal(storage, anynpu.reference.nd_to_nz(x, c0))
    assert torch.equal(anynpu.nz_to_nd(storage, shape), x)


def test_int4_words_have_the_storage_of_the_unpacked_matrix():
    """64 int4 columns a block: unpacking the storage of the words gives the storage of the values with that c0."""
    values = torch.randint(-8, 8, (33, 136), generator=torch.Generator().manual_seed(0)).to(torch.int32)
    words = anynpu.nd_to_nz(anynpu.int4_pack(values))
    assert words.shape == (3, 3, 16, 8)
    unpacked = anynpu.int4_unpack(words.reshape(-1, 8)).reshape(3, 3, 16, 64)
    assert torch.equal(unpacked, anynpu.nd_to_nz(values, 64))


@pytest.mark.parametrize(
    ("storage", "shape", "error", "match"),
    [
        (torch.zeros(1, 1, 16, 8, dtype=torch.complex64), [16, 8], TypeError, "storage must be .*, got complex64"),
        (torch.zeros(1, 1, 16, 8), [8], ValueError, "shape must have 2 to 8 axes, got 1"),
        (torch.zeros(1, 1, 16, 8), [-1, 8], ValueError, r"shape must not be negative, got \[-1, 8\]"),
        (torch.zeros(1, 16, 8), [16, 8], ValueError, "storage must have two axes more than shape"),
        (torch.zeros(1, 1, 16, 0), [16, 0], ValueError, "storage must have blocks of at least one column"),
        (torch.zeros(1, 1, 8, 8), [16, 8], ValueError, r"storage must have shape \[1, 1, 16, 8\] for shape \[16, 8\]"),
        (torch.zeros(1, 1, 16, 8), [17, 8], ValueError, r"storage must have shape \[1, 2, 16, 8\]"),
        (torch.zeros(1, 1, 16, 8), [16, 9], ValueError, r"storage must have shape \[2, 1, 16, 8\]"),
        (torch.zeros(2, 1, 1, 16, 8), [3, 16, 8], ValueError, r"storage must have shape \[3, 1, 1, 16, 8\]"),
        (torch.zeros(1, 1, 16, 16)[..., ::2], [16, 8], ValueError, "storage should be contiguous"),
    ],
)
@pytest.mark.parametrize("function", [anynpu.nz_to_nd, anynpu.reference.nz_to_nd], ids=["cpu", "reference"])
def test_inverse_invalid_call_raises(function, storage, shape, error, match):
    with pytest.raises(error, match=match):
        function(storage, shape)
