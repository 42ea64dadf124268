# SPDX-License-Identifier: Apache-2.0
"""Quantisation of tokens and gated activations over their case tables, and what only C can get wrong."""

from __future__ import annotations

import ctypes
import re

import c_front_end
import pytest
import torch
from c_cases import assert_equal, assert_refused, cases, invalid, run, valid

import anynpu
from anynpu import _native

DYNAMIC_QUANT = cases("dynamic_quant", "quant_mode")
SWIGLU = cases("dequant_swiglu_quant", "swiglu_mode", "clamp_limit", "glu_alpha", "glu_bias")


def dynamic_quant(args, version, dst_type=None, offset=None):
    x, dtype = args["x"], args.get("dtype", torch.int8)
    width = x.shape[-1] if dtype == torch.int8 else x.shape[-1] // 8
    code = ctypes.c_int64(_native.DTYPE_CODES[dtype] if dst_type is None else dst_type)
    return run(
        f"aclnnDynamicQuant{version}",
        [x, args.get("smooth_scales"), args.get("group_index"), offset],
        [([*x.shape[:-1], width], dtype), (list(x.shape[:-1]), torch.float32)],
        lambda x, smooth, groups, offset, y, scale: (
            [x, smooth, y, scale] if version == "" else [x, smooth, groups, code, y, scale, offset]
        ),
    )


def versions_of_dynamic_quant(case):
    return ["V2", *([] if "group_index" in case.args else [""])]


@valid(DYNAMIC_QUANT)
def test_dynamic_quant(case):
    for version in versions_of_dynamic_quant(case):
        outcome, results = dynamic_quant(case.args, version)
        assert outcome.status == 0, (version, outcome)
        assert_equal(results, anynpu.dynamic_quant(**case.args))


@invalid(DYNAMIC_QUANT)
def test_invalid_dynamic_quant(case):
    for version in versions_of_dynamic_quant(case):
        assert_refused(dynamic_quant(case.args, version)[0], case)


@pytest.mark.parametrize(
    "options, text",
    [
        ({"dst_type": 3}, "dstType is 3, but yOut has dtype int8, which is 2"),
        ({"dst_type": 2**40 + 2}, "dstType is 1099511627778, but"),
        ({"offset": torch.ones(17)}, "offsetOut must be null, quantisation with offsets is not implemented"),
    ],
)
def test_attributes_of_dynamic_quant(options, text):
    outcome, _ = dynamic_quant(DYNAMIC_QUANT[0].args, "V2", **options)
    assert outcome.status == 161002
    assert text in outcome.sentence


def test_int4_tensors_of_dynamic_quant_hold_the_bytes_of_int32_words():
    x = torch.randn(5, 64)
    words, scales = anynpu.dynamic_quant(x, dtype=torch.int32)
    with c_front_end.session() as make:
        y, scale = make.output([5, 8], torch.int32, code=c_front_end.INT4), make.output([5], torch.float32)
        outcome = c_front_end.call("aclnnDynamicQuant", make.tensor(x), None, y.handle, scale.handle)
        assert outcome.status == 0, outcome
        assert_equal([y.tensor([5, 8], torch.int32), scale.tensor([5], torch.float32)], [words, scales])


def strided_output(make, shape, dtype):
    """A view of every second element of poisoned memory, and the tensor that it lies in."""
    whole = torch.full([*shape[:-1], 2 * shape[-1]], -91, dtype=dtype)
    handle = make.tensor(whole[..., ::2])
    return make.find(handle), whole


def test_outputs_may_be_views():
    """The kernel wants contiguous outputs: what lies between the elements of a view stays as it was."""
    x = torch.randn(4, 6).half()
    with c_front_end.session() as make:
        y, whole = strided_output(make, [4, 6], torch.int8)
        scale = make.output([4], torch.float32)
        outcome = c_front_end.call("aclnnDynamicQuant", make.tensor(x), None, y.handle, scale.handle)
        assert outcome.status == 0, outcome
        whole[..., ::2] = anynpu.dynamic_quant(x)[0]
        assert torch.equal(y.tensor(list(whole.shape), torch.int8), whole)


def test_a_refused_call_leaves_views_untouched():
    x, smooth, groups = torch.randn(4, 6).half(), torch.ones(2, 6).half(), torch.tensor([1, 3], dtype=torch.int32)
    with c_front_end.session() as make:
        y, _ = strided_output(make, [4, 6], torch.int8)
        scale = make.output([4], torch.float32)
        tensors = [make.tensor(each) for each in (x, smooth, groups)]
        outcome = c_front_end.call("aclnnDynamicQuantV2", *tensors, ctypes.c_int64(2), y.handle, scale.handle, None)
        assert outcome.status == 361001
        assert "number of rows" in outcome.sentence
        assert y.is_untouched() and scale.is_untouched()


def dequant_swiglu_quant(args, mode="that of args"):
    x = args["x"]
    names = ("weight_scale", "activation_scale", "bias", "quant_scale", "quant_offset", "group_index")
    word = {0: b"static", 1: b"dynamic"}[args.get("quant_mode", 0)] if mode == "that of args" else mode
    left = ctypes.c_bool(args.get("activate_left", False))
    return run(
        "aclnnDequantSwigluQuant",
        [x, *(args.get(name) for name in names)],
        [([*x.shape[:-1], x.shape[-1] // 2], torch.int8), (list(x.shape[:-1]), torch.float32)],
        lambda *handles: [*handles[:-2], left, ctypes.c_char_p(word), *handles[-2:]],
    )


@valid(SWIGLU)
def test_dequant_swiglu_quant(case):
    outcome, results = dequant_swiglu_quant(case.args)
    assert outcome.status == 0, outcome
    assert_equal(results, anynpu.dequant_swiglu_quant(**case.args))


@invalid([case for case in SWIGLU if case.args.get("quant_mode", 0) in (0, 1)])
def test_invalid_dequant_swiglu_quant(case):
    assert_refused(dequant_swiglu_quant(case.args)[0], case)


def test_modes_of_dequant_swiglu_quant():
    args = next(case for case in SWIGLU if case.name == "static").args
    outcome, results = dequant_swiglu_quant(args, mode=None)
    assert outcome.status == 0, outcome
    assert_equal(results, anynpu.dequant_swiglu_quant(**args))
    outcome, _ = dequant_swiglu_quant(args, mode=b"dynamical")
    assert outcome.status == 161002
    assert 'quantModeOptional must be static or dynamic, got "dynamical"' in outcome.sentence


SWIGLU_V2 = cases("dequant_swiglu_quant")
FORM = {"swiglu_mode": 0, "clamp_limit": 7.0, "glu_alpha": 1.702, "glu_bias": 1.0}


def dequant_swiglu_quant_v2(args, dst_type=2, round_mode=b"rint", dim=-1):
    x = args["x"]
    names = ("weight_scale", "activation_scale", "bias", "quant_scale", "quant_offset", "group_index")
    mode, *form = (args.get(name, value) for name, value in FORM.items())
    options = [
        ctypes.c_bool(args.get("activate_left", False)),
        ctypes.c_char_p({0: b"static", 1: b"dynamic"}[args.get("quant_mode", 0)]),
        ctypes.c_int64(dst_type),
        ctypes.c_char_p(round_mode),
        ctypes.c_int64(dim),
        ctypes.c_int64(mode),
        *map(ctypes.c_double, form),
    ]
    return run(
        "aclnnDequantSwigluQuantV2",
        [x, *(args.get(name) for name in names)],
        [([*x.shape[:-1], x.shape[-1] // 2], torch.int8), (list(x.shape[:-1]), torch.float32)],
        lambda *handles: [*handles[:-2], *options, *handles[-2:]],
    )


@valid(SWIGLU_V2)
def test_dequant_swiglu_quant_v2(case):
    outcome, results = dequant_swiglu_quant_v2(case.args)
    assert outcome.status == 0, outcome
    assert_equal(results, anynpu.dequant_swiglu_quant(**case.args))


@invalid([case for case in SWIGLU_V2 if case.args.get("quant_mode", 0) in (0, 1)])
def test_invalid_dequant_swiglu_quant_v2(case):
    assert_refused(dequant_swiglu_quant_v2(case.args)[0], case)


@pytest.mark.parametrize(
    "options, text",
    [
        ({"dst_type": 29}, r"dstType must be 2 \(int8\), got 29"),
        ({"round_mode": b"floor"}, 'roundModeOptional must be rint, got "floor"'),
        ({"dim": 0}, "activateDim must be -1 or 1, got 0"),
    ],
)
def test_modes_of_dequant_swiglu_quant_v2(options, text):
    args = next(case for case in SWIGLU_V2 if case.name == "static").args
    assert dequant_swiglu_quant_v2(args, round_mode=None, dim=1)[0].status == 0
    outcome, _ = dequant_swiglu_quant_v2(args, **options)
    assert outcome.status == 161002
    assert re.search(text, outcome.sentence), outcome


PLAIN_SWIGLU = cases("swiglu")


def swiglu(args, out=None):
    x, dim = args["x"], args.get("dim", -1)
    shape = list(x.shape)
    if -len(shape) <= dim < len(shape):
        shape[dim] //= 2
    return run(
        "aclnnSwiGlu",
        [x],
        [out or (shape, x.dtype)],
        lambda x, y: [x, ctypes.c_int64(dim), y],
    )


@valid(PLAIN_SWIGLU)
def test_swiglu(case):
    outcome, results = swiglu(case.args)
    assert outcome.status == 0, outcome
    assert_equal(results, [anynpu.swiglu(**case.args)])


@invalid(PLAIN_SWIGLU)
def test_invalid_swiglu(case):
    assert_refused(swiglu(case.args)[0], case)


@pytest.mark.parametrize(
    "out, text",
    [
        (([4, 3], torch.float32), r"y must have shape (4, 4), got (4, 3)"),
        (([4, 4], torch.float16), "y must be float32 as x is, got float16"),
    ],
)
def test_swiglu_wants_an_output_of_half_the_size(out, text):
    outcome, _ = swiglu({"x": torch.ones(4, 8)}, out)
    assert outcome.status == 161002
    assert text in outcome.sentence
