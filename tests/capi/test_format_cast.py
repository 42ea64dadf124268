# SPDX-License-Identifier: Apache-2.0
"""Weights in FRACTAL_NZ: made by a copy, or where they lie, and then multiplied; and the host's trans_quant_param."""

from __future__ import annotations

import ctypes
import re

import c_front_end
import pytest
import torch
from c_front_end import INT4, NZ, operators, recent_error

import anynpu
from anynpu import _native, nd_to_nz

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int8)
SHAPES = [(1, 2, 1, 1, 20, 33), (16, 32), (40, 70), (1, 5), (2, 3, 33, 17), (3, 0, 4)]


def values(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 9).to(dtype)


def described(tensor: int, target: int, additional: int = -1):
    """Status, storage shape and format."""
    shape, size, layout = ctypes.POINTER(ctypes.c_int64)(), ctypes.c_uint64(), ctypes.c_int()
    recent_error()
    status = operators.aclnnNpuFormatCastCalculateSizeAndFormat(
        ctypes.c_void_p(tensor), target, additional, ctypes.byref(shape), ctypes.byref(size), ctypes.byref(layout)
    )
    return status, [shape[i] for i in range(size.value)], layout.value


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int32], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_format_cast(shape, dtype):
    x = values(*shape, dtype=dtype)
    for view in (x, x.mT.contiguous().mT):
        with c_front_end.session() as make:
            source, target = make.tensor(view), make.output(list(shape), dtype, nz=True)
            stored = nd_to_nz(x)
            if view.is_contiguous():
                assert described(source, NZ) == (0, list(stored.shape), NZ)
            assert described(source, 2) == (0, list(shape), 2)
            outcome = c_front_end.call("aclnnNpuFormatCast", source, target.handle)
            assert outcome.status == 0, outcome
            assert torch.equal(target.tensor(list(stored.shape), dtype), stored)
            back = make.output(list(shape), dtype)
            outcome = c_front_end.call("aclnnNpuFormatCast", target.handle, back.handle)
            assert outcome.status == 0, outcome
            assert torch.equal(back.tensor(list(shape), dtype), x)


def test_format_cast_of_int4():
    x = anynpu.int4_pack(torch.randint(-8, 8, (40, 64), dtype=torch.int32))
    with c_front_end.session() as make:
        source = make.tensor(x, code=INT4)
        assert described(source, NZ) == (0, [1, 3, 16, 64], NZ)


@pytest.mark.parametrize(
    "source, target, sentence",
    [
        (torch.ones(3), None, "srcTensor must have 2 to 6 axes, got 1"),
        (torch.ones(1, 1, 1, 1, 1, 1, 1), None, "srcTensor must have 2 to 6 axes, got 7"),
        (torch.ones(3, 4), torch.ones(3, 4), "one of x and y must be ND .* and the other FRACTAL_NZ .*, got twice 2"),
    ],
)
def test_format_cast_refuses(source, target, sentence):
    with c_front_end.session() as make:
        handle = make.tensor(source)
        if target is None:
            assert described(handle, NZ)[0] == 161002
            assert re.search(sentence, recent_error())
            assert described(handle, 3)[0] == 161002
            assert "dstFormat must be ND (2) or FRACTAL_NZ (29), got 3" in recent_error()
            return
        outcome = c_front_end.call("aclnnNpuFormatCast", handle, make.tensor(target))
        assert outcome.status == 161002
        assert re.search(sentence, outcome.sentence)


@pytest.mark.parametrize("missing", range(4))
def test_shape_of_a_format_cast_has_pointers(missing):
    results = [ctypes.pointer(kind()) for kind in (ctypes.POINTER(ctypes.c_int64), ctypes.c_uint64, ctypes.c_int)]
    with c_front_end.session() as make:
        pointers = [ctypes.c_void_p(make.tensor(torch.ones(2, 3))), *results]
        pointers[missing] = None
        tensor, *results = pointers
        assert operators.aclnnNpuFormatCastCalculateSizeAndFormat(tensor, NZ, -1, *results) == 161001


def weight_size(shape, dtype=None):
    """Status and elements."""
    size = ctypes.c_uint64(77)
    with c_front_end.session() as make:
        array, result = ctypes.c_void_p(make.ints(shape)), ctypes.byref(size)
        recent_error()
        if dtype is None:
            return operators.aclnnCalculateMatmulWeightSize(array, result), size.value
        return operators.aclnnCalculateMatmulWeightSizeV2(array, ctypes.c_int32(dtype), result), size.value


def test_weight_sizes():
    for shape in SHAPES[:-1]:
        for dtype in DTYPES:
            stored = nd_to_nz(torch.zeros(shape, dtype=dtype))
            assert weight_size(list(shape), _native.DTYPE_CODES[dtype]) == (0, stored.numel())
        assert weight_size(list(shape)) == (0, nd_to_nz(torch.zeros(shape).half()).numel())
    for shape, dtype, sentence in (
        ([3], 1, "tensorShape must have 2 to 6 axes, got 1"),
        ([1, 1, 1, 1, 1, 3, 4], 1, "tensorShape must have 2 to 6 axes, got 7"),
        ([3, 4], 9, "dataType must be FLOAT16, BF16, FLOAT or INT8, got 9"),
        ([-3, 4], 1, r"tensorShape must be that of a tensor, got \(-3, 4\)"),
        ([2**40, 2**40], 2, "tensorShape must be that of a tensor"),
    ):
        assert weight_size(shape, dtype) == (161002, 77)
        assert re.search(sentence, recent_error())
    assert operators.aclnnCalculateMatmulWeightSize(None, ctypes.byref(ctypes.c_uint64())) == 161001
    with c_front_end.session() as make:
        assert operators.aclnnCalculateMatmulWeightSize(ctypes.c_void_p(make.ints([3, 4])), None) == 161001


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_weights_are_multiplied_after_they_are_turned(dtype, transposed, isa):
    k, n = 40, 70
    weight = values(k, n, dtype=dtype)
    weight = weight.mT.contiguous().mT if transposed else weight
    x = values(5, k, dtype=dtype)
    with c_front_end.session() as make:
        handle = make.tensor(weight)
        scale = make.tensor(torch.ones(1))

        def product():
            out = make.output([5, n], torch.bfloat16 if dtype == torch.int8 else dtype)
            if dtype == torch.int8:
                none, false = [None] * 3, ctypes.c_bool(False)
                arguments = [make.tensor(x), handle, scale, *none, false, false, out.handle]
                outcome = c_front_end.call("aclnnQuantMatmulV4", *arguments)
            else:
                outcome = c_front_end.call("aclnnMatmul", make.tensor(x), handle, out.handle, ctypes.c_int8(0))
            assert outcome.status == 0, outcome
            return out.read()

        before = product()
        outcome = c_front_end.call("aclnnTransMatmulWeight", handle)
        assert outcome.status == 0, outcome
        stored = nd_to_nz(weight.mT if transposed else weight)
        made = make.find(handle)
        contents = torch.frombuffer(bytearray(made.read()), dtype=dtype)
        assert torch.equal(contents[: stored.numel()].reshape(stored.shape), stored)
        assert product() == before
        outcome = c_front_end.call("aclnnTransMatmulWeight", handle)
        assert outcome.status == 161002
        assert "mmWeightRef must be ND with 2 to 6 axes, got format 29 and 2 axes" in outcome.sentence


@pytest.mark.parametrize(
    "weight, status, sentence",
    [
        (None, 161001, "mmWeightRef is a null pointer"),
        (torch.ones(3), 161002, "mmWeightRef must be ND with 2 to 6 axes, got format 2 and 1 axes"),
        (torch.ones(3, 4).int(), 161002, "mmWeightRef must be float16, bfloat16, float32 or int8, got int32"),
        (torch.ones(3, 8)[:, ::2], 161002, "the FRACTAL_NZ tensor must be contiguous"),
    ],
)
def test_weights_that_stay_as_they_are(weight, status, sentence):
    with c_front_end.session() as make:
        handle = make.tensor(weight)
        outcome = c_front_end.call("aclnnTransMatmulWeight", handle)
        assert outcome.status == status, outcome
        assert re.search(sentence, outcome.sentence), outcome
        if weight is not None:
            assert make.find(handle).is_untouched()
            layout = ctypes.c_int(0)
            assert c_front_end.base.aclGetFormat(ctypes.c_void_p(handle), ctypes.byref(layout)) == 0
            assert layout.value == 2


def trans_quant_param(scale, offset=None):
    def array(tensor):
        if tensor is None:
            return None, ctypes.c_uint64(0)
        return (ctypes.c_float * len(tensor))(*tensor.tolist()), ctypes.c_uint64(len(tensor))

    words, size = ctypes.POINTER(ctypes.c_uint64)(), ctypes.c_uint64()
    recent_error()
    status = operators.aclnnTransQuantParam(*array(scale), *array(offset), ctypes.byref(words), ctypes.byref(size))
    return status, [words[i] for i in range(size.value)]


def test_trans_quant_param_of_the_host():
    scale, offset = torch.rand(70), torch.randint(-200, 200, (70,)).float()
    for given in ((scale,), (scale, offset), (scale[:1], offset), (scale, offset[:1])):
        status, words = trans_quant_param(*given)
        assert status == 0, recent_error()
        assert words == anynpu.trans_quant_param(*given).tolist()
    for given, expected, sentence in (
        ((None,), 161001, "scaleArray is a null pointer"),
        ((scale, offset[:3]), 161002, "offset must have the axes of scale and its size or 1"),
        ((scale[:0],), 161002, "scale must not be empty"),
        ((scale, offset[:0]), 161002, "offsetSize 0 without offsetArray, got 70 and 0"),
    ):
        status, words = trans_quant_param(*given)
        assert (status, words) == (expected, [])
        assert sentence in recent_error()
