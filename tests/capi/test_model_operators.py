# SPDX-License-Identifier: Apache-2.0
"""Moves, rotations and the choice of the next token in the C front end against torch."""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass

import c_front_end
import pytest
import torch

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
DTYPES = pytest.mark.parametrize("dtype", FLOATS, ids=str)


@dataclass
class Out:
    """An output: a poisoned tensor, or one whose memory and strides are those of ``like``."""

    shape: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32
    like: torch.Tensor | None = None


def call(function: str, *arguments):
    """The outcome, and the outputs. Tensors, lists of tensors and lists of numbers become handles."""
    with c_front_end.session() as make:
        made, given = [], []
        for argument in arguments:
            if isinstance(argument, Out):
                whole = argument.like
                handle = (
                    make.output(list(argument.shape), argument.dtype).handle if whole is None else make.tensor(whole)
                )
                made.append((argument, make.find(handle)))
                given.append(handle)
            elif isinstance(argument, list):
                tensors = bool(argument) and isinstance(argument[0], torch.Tensor)
                given.append(make.tensors([make.tensor(x) for x in argument]) if tensors else make.ints(argument))
            else:
                given.append(make.tensor(argument) if isinstance(argument, torch.Tensor) else argument)
        outcome = c_front_end.call(function, *given)
        if outcome.status != 0:
            assert all(each.is_untouched() for _, each in made)
            return outcome, []
        return outcome, [read(out, each) for out, each in made]


def read(out: Out, made) -> torch.Tensor:
    if out.like is None:
        return made.tensor(list(out.shape), out.dtype)
    whole = torch.empty(0, dtype=out.like.dtype).set_(out.like.untyped_storage())
    values = made.tensor(list(whole.shape), whole.dtype)
    return values.as_strided(out.like.shape, out.like.stride(), out.like.storage_offset())


def results(function: str, *arguments):
    outcome, made = call(function, *arguments)
    assert outcome.status == 0, outcome
    return made


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def dim(value: int) -> ctypes.c_int64:
    return ctypes.c_int64(value)


MOVED = (torch.float32, torch.bfloat16, torch.int8, torch.int64, torch.bool)


@pytest.mark.parametrize("dtype", MOVED, ids=str)
def test_moves(dtype):
    x = (random(4, 5, 6) * 9).to(dtype)
    (y,) = results("aclnnPermute", x, [2, 0, -2], Out((6, 4, 5), dtype))
    assert torch.equal(y, x.permute(2, 0, 1))
    (y,) = results("aclnnCat", [x, x[:, 1:3], x.mT.contiguous().mT], dim(-2), Out((4, 12, 6), dtype))
    assert torch.equal(y, torch.cat([x, x[:, 1:3], x], -2))
    index = torch.tensor([4, 0, 4, 1])
    for axis, places in ((1, index), (-1, index.int()), (0, index[1:2])):
        expected = x.index_select(axis, places)
        (y,) = results("aclnnIndexSelect", x.mT.contiguous().mT, dim(axis), places, Out(expected.shape, dtype))
        assert torch.equal(y, expected)
    (y,) = results("aclnnEmbedding", x[0], index.view(2, 2), Out((2, 2, 6), dtype))
    assert torch.equal(y, x[0][index.view(2, 2)])
    (y,) = results("aclnnInplaceCopy", Out(like=torch.zeros(3, 4, 10, dtype=dtype)[..., 1::2]), x[0, :4, :1])
    assert torch.equal(y, x[0, :4, :1].expand(3, 4, 5))


def test_a_copy_casts():
    x = random(3, 7)
    (y,) = results("aclnnInplaceCopy", Out((2, 3, 7), torch.float16), x)
    assert torch.equal(y, x.half().expand(2, 3, 7))


@DTYPES
@pytest.mark.parametrize("axis", (0, 1, -1))
def test_softmax(dtype, axis):
    x = (random(3, 70, 5) * 4).to(dtype)
    for out in (Out(x.shape, dtype), Out(like=torch.zeros(5, 70, 3, dtype=dtype).permute(2, 1, 0))):
        (y,) = results("aclnnSoftmax", x.transpose(0, 2).contiguous().transpose(0, 2), dim(axis), out)
        expected = x.double().softmax(axis)
        bound = expected * (torch.finfo(dtype).eps / 2 + 2**-19) + torch.finfo(dtype).smallest_normal
        assert ((y.double() - expected).abs() <= bound).all()


@DTYPES
@pytest.mark.parametrize("largest", (True, False))
def test_topk(dtype, largest):
    x = random(4, 33, 2).to(dtype)
    x[0, 3, 0], x[1, 4, 1] = float("nan"), -float("inf")
    x[2, 7] = x[2, 9]
    arguments = (dim(5), dim(1), ctypes.c_bool(largest), ctypes.c_bool(True))
    values, indices = results("aclnnTopk", x, *arguments, Out((4, 5, 2), dtype), Out((4, 5, 2), torch.int64))
    order = x.sort(dim=1, descending=largest, stable=True)
    assert torch.equal(indices, order.indices[:, :5])
    torch.testing.assert_close(values, order.values[:, :5], rtol=0, atol=0, equal_nan=True)


def test_argmax():
    x = random(3, 1000, 4)
    for axis, keep, dtype in ((1, False, torch.int64), (-1, True, torch.int32), (0, False, torch.int32)):
        expected = x.argmax(axis, keepdim=keep).to(dtype)
        (y,) = results("aclnnArgMax", x, dim(axis), ctypes.c_bool(keep), Out(expected.shape, dtype))
        assert torch.equal(y, expected)
    (y,) = results("aclnnArgMax", torch.tensor([1, 7, 7], dtype=torch.int32), dim(0), ctypes.c_bool(False),
                   Out((), torch.int64))  # fmt: skip
    assert y.item() == 1


def rotated(x, cos, sin, interleave):
    x, cos, sin = x.double(), cos.double(), sin.double()
    if interleave:
        turned = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
    else:
        half = x.shape[-1] // 2
        turned = torch.cat([-x[..., half:], x[..., :half]], -1)
    return x * cos + turned * sin, (x * cos).abs() + (turned * sin).abs()


def assert_rotated(y, x, cos, sin, interleave=False):
    expected, sizes = rotated(x, cos, sin, interleave)
    bound = expected.abs() * torch.finfo(x.dtype).eps / 2 + sizes * 2**-22 + torch.finfo(x.dtype).smallest_normal
    assert ((y.double() - expected).abs() <= bound).all()


@DTYPES
def test_rotations(dtype):
    shapes = {1: ((2, 3, 4, 16), (2, 3, 1, 16)), 2: ((3, 2, 4, 16), (3, 2, 1, 16)),
              3: ((2, 4, 3, 16), (2, 1, 3, 16)), 4: ((6, 4, 16), (6, 1, 16))}  # fmt: skip
    for layout, (shape, angles) in shapes.items():
        heads = shape.index(4)
        query, cos, sin = (random(*s, seed=at).to(dtype) for at, s in enumerate((shape, angles, angles)))
        key = random(*shape, seed=3).to(dtype).narrow(heads, 1, 2)
        for interleave in (False, True):
            mode = ctypes.c_char_p(b"interleave" if interleave else b"half")
            q, k = results("aclnnApplyRotaryPosEmbV2", Out(like=query), Out(like=key), cos, sin, dim(layout), mode)
            assert_rotated(q, query, cos, sin, interleave)
            assert_rotated(k, key, cos, sin, interleave)
            (y,) = results("aclnnRotaryPositionEmbedding", query, cos, sin, dim(interleave), Out(query.shape, dtype))
            assert torch.equal(y, q)
        q, k = results("aclnnApplyRotaryPosEmb", Out(like=query), Out(like=key), cos, sin, dim(layout))
        assert_rotated(q, query, cos, sin)
        assert_rotated(k, key, cos, sin)


X = torch.ones(2, 3)
HEADS, ANGLES = torch.ones(1, 2, 3, 4), torch.ones(1, 2, 1, 4)
QUARTER = ctypes.c_char_p(b"quarter")
YES = ctypes.c_bool(True)
LONG = Out((2, 3), torch.int64)
REFUSALS = {
    "dims": (["aclnnPermute", X, [0], Out((2, 3))], 161002, "dims must name the 2 axes of self, got 1"),
    "an axis twice": (["aclnnPermute", X, [0, 0], Out((2, 3))], 161002, "each axis of self once, got 0"),
    "shape of a permutation": (["aclnnPermute", X, [1, 0], Out((2, 3))], 161002, "y must have the shape of x"),
    "no tensors": (["aclnnCat", None, dim(0), Out((2, 3))], 161001, "tensors is a null pointer"),
    "axes of parts": (["aclnnCat", [X, X[0]], dim(0), Out((3, 3))], 161002, "the 2 axes of out, got 1"),
    "sum of parts": (["aclnnCat", [X, X], dim(0), Out((5, 3))], 161002, "must add up to that of out, 5, got less"),
    "no such axis": (["aclnnCat", [X, X], dim(2), Out((4, 3))], 161002, "dim must name one of 2 axes, got 2"),
    "many parts": (["aclnnCat", [X] * 65, dim(0), Out((130, 3))], 161002, "must hold 1 to 64 tensors, got 65"),
    "index": (["aclnnIndexSelect", X, dim(0), X[0], Out((3, 3))], 161002, "the index must be int32 or int64"),
    "index outside": (
        ["aclnnIndexSelect", X, dim(0), torch.tensor([0, 2]), Out((2, 3))],
        361001,
        r"every index must be in \[0, 1\], got 2 at \[1\]",
    ),
    "no row": (["aclnnEmbedding", X, torch.tensor([-1]), Out((1, 3))], 361001, r"in \[0, 1\], got -1 at \[0\]"),
    "embedding": (["aclnnEmbedding", X, torch.tensor([1]), Out((1, 4))], 161002, r"got \(1, 4\)"),
    "copy": (["aclnnInplaceCopy", Out((2, 2)), X], 161002, r"src must broadcast to .* \(2, 2\), got \(2, 3\)"),
    "softmax": (["aclnnSoftmax", X.int(), dim(0), Out((2, 3))], 161002, "self must be float32, .* got int32"),
    "k": (["aclnnTopk", X, dim(4), dim(1), YES, YES, Out((2, 4)), LONG], 161002, r"k must be in \[0, 3\], got 4"),
    "places": (["aclnnTopk", X, dim(3), dim(1), YES, YES, Out((2, 3)), Out((2, 3))], 161002, "must be int64"),
    "long": (["aclnnArgMax", X.long(), dim(1), YES, Out((2, 1), torch.int64)], 161002, "int64 is not implemented"),
    "kept axis": (["aclnnArgMax", X, dim(1), YES, Out((2,), torch.int64)], 161002, "out must have 2 axes, got 1"),
    "layout": (
        ["aclnnApplyRotaryPosEmb", Out(like=HEADS), Out(like=HEADS), ANGLES, ANGLES, dim(5)], 161002, r"\(TND\), got 5"
    ),
    "axes of heads": (
        ["aclnnApplyRotaryPosEmb", Out(like=HEADS), Out(like=HEADS), ANGLES, ANGLES, dim(4)], 161002, "must have 3 axes"
    ),
    "rotary mode": (
        ["aclnnApplyRotaryPosEmbV2", Out(like=HEADS), Out(like=HEADS), ANGLES, ANGLES, dim(1), QUARTER],
        161002,
        "half or interleave, others are not implemented, got 'quarter'",
    ),
    "width of angles": (
        ["aclnnRotaryPositionEmbedding", HEADS, ANGLES[..., :1], ANGLES, dim(0), Out(HEADS.shape)],
        161002,
        "its last one",
    ),
    "odd heads": (
        ["aclnnRotaryPositionEmbedding", HEADS[..., :3], ANGLES[..., :3], ANGLES[..., :3], dim(0), Out((1, 2, 3, 3))],
        161002,
        "must be even, got 3",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name):
    arguments, status, sentence = REFUSALS[name]
    outcome, _ = call(*arguments)
    assert outcome.status == status, outcome
    assert re.search(sentence, outcome.sentence), outcome
