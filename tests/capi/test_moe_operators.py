# SPDX-License-Identifier: Apache-2.0
"""The operators around the products of a quantised layer over their case tables, and what only C can get wrong."""

from __future__ import annotations

import ctypes
import re

import c_front_end
import case_table
import pytest
import torch

import anynpu
from anynpu import _native


def cases(operator, *absent):
    """Rows of a table that use none of the arguments that C lacks."""
    return [case for case in case_table.load(operator, "c") if not set(absent) & set(case.args)]


UNTOUCHED = int.from_bytes(bytes([c_front_end.POISON] * 4), "little", signed=True)
DYNAMIC_QUANT = cases("dynamic_quant", "quant_mode")
SWIGLU = cases("dequant_swiglu_quant", "swiglu_mode", "clamp_limit", "glu_alpha", "glu_bias")


def valid(rows):
    return pytest.mark.parametrize("case", [case for case in rows if case.error is None], ids=lambda case: case.name)


def invalid(rows):
    return pytest.mark.parametrize(
        "case", [case for case in rows if case.error is not None], ids=lambda case: case.name
    )


def run(function, inputs, outputs, arguments):
    """Outcome of a call and its outputs; ``arguments(*handles)`` puts the handles in their order."""
    with c_front_end.session() as make:
        made = [make.output(shape, dtype) for shape, dtype in outputs]
        handles = [make.tensor(each) for each in inputs]
        outcome = c_front_end.call(function, *arguments(*handles, *(each.handle for each in made)))
        if outcome.status != 0:
            assert all(each.is_untouched() for each in made)
            return outcome, None
        return outcome, [each.tensor(shape, dtype) for each, (shape, dtype) in zip(made, outputs, strict=True)]


def assert_equal(results, expected):
    for result, want in zip(results, expected, strict=True):
        torch.testing.assert_close(result, want.contiguous(), rtol=0, atol=0, equal_nan=True)


def assert_refused(outcome, case):
    assert outcome.status == case.error["status"], outcome
    assert re.search(case.error["match"], outcome.sentence), outcome


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
        (([4, 3], torch.float32), r"y must be ND, contiguous, of shape (4, 4), got (4, 3)"),
        (([4, 4], torch.float16), "y must be float32 as x is, got float16"),
    ],
)
def test_swiglu_wants_an_output_of_half_the_size(out, text):
    outcome, _ = swiglu({"x": torch.ones(4, 8)}, out)
    assert outcome.status == 161002
    assert text in outcome.sentence


FINALIZE = cases("moe_finalize_routing")
FINALIZE_INPUTS = ("expanded_rows", "row_idx", "skip1", "skip2", "bias", "scales", "expert_idx")


def moe_finalize_routing(args, version="V2"):
    rows, scales = args["expanded_rows"], args["scales"]
    tokens = args["row_idx"].shape[0] // args.get("k", 1) if scales is None else scales.shape[0]
    mode = ctypes.c_int64(args.get("drop_pad_mode", 0))

    def arguments(rows, index, skip1, skip2, bias, scales, experts, out):
        if version == "":
            return [rows, skip1, skip2, bias, scales, index, experts, out]
        return [rows, index, skip1, skip2, bias, scales, experts, mode, out]

    inputs = [args.get(name) for name in FINALIZE_INPUTS]
    return run(f"aclnnMoeFinalizeRouting{version}", inputs, [([tokens, rows.shape[-1]], rows.dtype)], arguments)


@valid(FINALIZE)
def test_moe_finalize_routing_v2(case):
    outcome, results = moe_finalize_routing(case.args)
    assert outcome.status == 0, outcome
    assert_equal(results, [anynpu.moe_finalize_routing(**case.args)])


@invalid(FINALIZE)
def test_invalid_moe_finalize_routing_v2(case):
    assert_refused(moe_finalize_routing(case.args)[0], case)


def test_moe_finalize_routing():
    rows, skip, bias = torch.randn(6, 20), torch.randn(3, 20), torch.randn(4, 20)
    scales, index = torch.rand(3, 2), torch.tensor([5, 3, -1, 0, 2, 1], dtype=torch.int32)
    experts = torch.tensor([[0, 3], [1, 1], [2, 0]], dtype=torch.int32)
    for second in (None, torch.randn(3, 20)):
        args = dict(zip(FINALIZE_INPUTS, (rows, index, skip, second, bias, scales, experts), strict=True))
        outcome, results = moe_finalize_routing(args, "")
        assert outcome.status == 0, outcome
        assert_equal(results, [anynpu.moe_finalize_routing(**args)])
    outcome, _ = moe_finalize_routing(args | {"bias": None}, "")
    assert outcome.status == 161001
    assert "bias is a null pointer" in outcome.sentence


GATING = cases("moe_gating_topk_softmax")


def moe_gating_topk_softmax(args, version, k=None):
    """Results as those of Python; what a version lacks is left out."""
    x, chosen, renorm = args["x"], args.get("k", 1), args.get("renorm", 0)
    shape, flag = [*x.shape[:-1], chosen], args.get("output_softmax", False)
    outputs = [(shape, x.dtype), (shape, torch.int32)]
    outputs.append((shape, torch.int32) if version == "" else (list(x.shape), torch.float32))
    numbers = [ctypes.c_int64(chosen if k is None else k)]
    if version == "V2":
        numbers += [ctypes.c_int64(renorm), ctypes.c_bool(flag)]
    return run(
        f"aclnnMoeGatingTopKSoftmax{version}",
        [x, args.get("finished")],
        outputs,
        lambda x, finished, *made: [x, finished, *numbers, *made],
    )


@valid(GATING)
def test_moe_gating_topk_softmax(case):
    y, experts, row_idx, softmax = anynpu.moe_gating_topk_softmax(**case.args)
    outcome, results = moe_gating_topk_softmax(case.args, "V2")
    assert outcome.status == 0, outcome
    if not case.args.get("output_softmax") or case.args.get("renorm"):
        softmax = torch.full_like(results[2].view(torch.int32), UNTOUCHED).view(torch.float32)
    assert_equal(results, [y, experts, softmax])
    if case.args.get("renorm", 0) == 0:
        outcome, results = moe_gating_topk_softmax(case.args, "")
        assert outcome.status == 0, outcome
        assert_equal(results, [y, experts, row_idx])


@invalid(GATING)
def test_invalid_moe_gating_topk_softmax(case):
    for version in ("V2", *([] if "renorm" in case.args else [""])):
        assert_refused(moe_gating_topk_softmax(case.args, version)[0], case)


def test_moe_gating_topk_softmax_wants_outputs_of_k():
    for version in ("", "V2"):
        outcome, _ = moe_gating_topk_softmax({"x": torch.randn(3, 5), "k": 2}, version, k=2**32 + 2)
        assert outcome.status == 161002
        assert "k is 4294967298, but yOut has shape (3, 2)" in outcome.sentence


ROUTING = cases("moe_init_routing")
# What V2 does: no quantisation, no part of the experts, no pairs, rows of the slots.
PLAIN_ROUTING = [
    case
    for case in cases("moe_init_routing", "scale", "offset", "active_expert_range", "row_idx_type", "quant_mode")
    if case.args.get("expert_tokens_num_type", 0) != 2 and case.args["x"].dtype != torch.int8
]


def routing_shapes(args):
    x, ids = args["x"], args["expert_idx"]
    width, slots, experts = x.shape[-1], ids.numel(), max(1, args.get("expert_num", -1))
    if args.get("drop_pad_mode", 0) == 1:
        capacity = max(1, args.get("expert_capacity", -1))
        return [experts, capacity, width], experts * capacity, slots, experts
    active = args.get("active_num", -1)
    rows = min(active, slots) if active > 0 else slots
    return [rows, width], rows, slots, experts


def moe_init_routing_v3(args):
    shape, rows, slots, experts = routing_shapes(args)
    expert_range = args.get("active_expert_range")
    first, last = expert_range if expert_range and len(expert_range) == 2 else (0, experts)
    counts = [experts, 2] if args.get("expert_tokens_num_type", 0) == 2 else [max(0, last - first)]
    dtype = args["x"].dtype if args.get("quant_mode", -1) == -1 else torch.int8
    numbers = [
        ctypes.c_int64(args.get(name, default))
        for name, default in (
            *((name, -1) for name in ("active_num", "expert_capacity", "expert_num")),
            *((name, 0) for name in ("drop_pad_mode", "expert_tokens_num_type")),
        )
    ]
    numbers += [ctypes.c_bool(True), ctypes.c_int64(args.get("quant_mode", -1))]
    with c_front_end.session() as make:
        array = None if expert_range is None else make.ints(expert_range)
        numbers += [array, ctypes.c_int64(args.get("row_idx_type", 0))]
        return run(
            "aclnnMoeInitRoutingV3",
            [args[name] if name in args else None for name in ("x", "expert_idx", "scale", "offset")],
            [(shape, dtype), ([slots], torch.int32), (counts, torch.int64), ([rows], torch.float32)],
            lambda *handles: [*handles[:4], *numbers, *handles[4:]],
        )


def moe_init_routing_v2(args, flag=None, before_capacity=True):
    """The outputs of V2, the unused one of the two kinds of counts last and never written."""
    shape, _, slots, experts = routing_shapes(args)
    flag = 1 + args.get("expert_tokens_num_type", 0) if flag is None else flag
    numbers = [ctypes.c_int64(args.get(name, -1)) for name in ("active_num", "expert_capacity", "expert_num")]
    numbers += [ctypes.c_int64(args.get("drop_pad_mode", 0)), ctypes.c_int64(flag), ctypes.c_bool(before_capacity)]
    return run(
        "aclnnMoeInitRoutingV2",
        [args["x"], args["expert_idx"]],
        [(shape, args["x"].dtype), ([slots], torch.int32), *2 * [([experts], torch.int32)]],
        lambda *handles: [*handles[:2], *numbers, *handles[2:]],
    )


@valid(ROUTING)
def test_moe_init_routing_v3(case):
    outcome, results = moe_init_routing_v3(case.args)
    assert outcome.status == 0, outcome
    assert_equal(results, anynpu.moe_init_routing(**case.args))


@invalid(ROUTING)
def test_invalid_moe_init_routing_v3(case):
    assert_refused(moe_init_routing_v3(case.args)[0], case)


@valid(PLAIN_ROUTING)
def test_moe_init_routing_v2(case):
    outcome, (x, index, sums_or_counts, all_tokens) = moe_init_routing_v2(case.args)
    assert outcome.status == 0, outcome
    *expected, tokens, _ = anynpu.moe_init_routing(**case.args)
    assert_equal([x, index], expected)
    padded = case.args.get("drop_pad_mode", 0) == 1
    assert_equal([all_tokens if padded else sums_or_counts], [tokens.int()])
    assert (sums_or_counts if padded else all_tokens).eq(UNTOUCHED).all()


@invalid(PLAIN_ROUTING)
def test_invalid_moe_init_routing_v2(case):
    if case.args.get("expert_tokens_num_type", 0) == 3:
        pytest.skip("a flag of another range")
    assert_refused(moe_init_routing_v2(case.args)[0], case)


def test_moe_init_routing_v2_counts_on_request_only():
    args = next(case for case in PLAIN_ROUTING if case.name == "all experts").args
    outcome, results = moe_init_routing_v2(args, flag=0)
    assert outcome.status == 0, outcome
    assert_equal(results[:2], anynpu.moe_init_routing(**args)[:2])
    assert all(each.eq(UNTOUCHED).all() for each in results[2:])
    outcome, _ = moe_init_routing_v2(args, flag=3)
    assert outcome.status == 161002
    assert "expertTokensCountOrCumsumFlagOptional must be 0, 1 or 2, got 3" in outcome.sentence
    numbers = [*map(ctypes.c_int64, (0, 0, 2**31 - 1, 0, 0)), ctypes.c_bool(False)]
    outcome, _ = run(
        "aclnnMoeInitRoutingV2",
        [args["x"], args["expert_idx"]],
        [(routing_shapes(args)[0], args["x"].dtype), ([args["expert_idx"].numel()], torch.int32)],
        lambda *handles: [*handles[:2], *numbers, *handles[2:], None, None],
    )
    assert outcome.status == 161002
    assert "expert_num must be at most 1048576 without expert_tokens, got 2147483647" in outcome.sentence
    padded = next(case for case in PLAIN_ROUTING if case.name == "padded running sums are counts").args
    outcome, results = moe_init_routing_v2(padded, before_capacity=False)
    assert outcome.status == 0, outcome
    assert all(each.eq(UNTOUCHED).all() for each in results[2:])


def test_moe_init_routing_wants_the_rows_of_its_attributes():
    args = next(case for case in ROUTING if case.name == "all experts").args
    shape, _, slots, experts = routing_shapes(args)
    numbers = [ctypes.c_int64(value) for value in (0, 0, experts, 0, 1)]
    outcome, _ = run(
        "aclnnMoeInitRoutingV2",
        [args["x"], args["expert_idx"]],
        [([shape[0] - 1, shape[1]], args["x"].dtype), ([slots], torch.int32), ([experts], torch.int32)],
        lambda *handles: [*handles[:2], *numbers, ctypes.c_bool(False), *handles[2:], None],
    )
    assert outcome.status == 161002
    assert "expandedXOut must have 21 rows, got 20" in outcome.sentence


def moe_init_routing_quant_v2(args, quant_mode=None):
    """The outputs of V2, and the scales of rows, which are for quant_mode 1 only."""
    shape, rows, slots, experts = routing_shapes(args)
    numbers = [ctypes.c_int64(args.get(name, -1)) for name in ("active_num", "expert_capacity", "expert_num")]
    numbers += [ctypes.c_int64(args.get("drop_pad_mode", 0)), ctypes.c_int64(1 + args.get("expert_tokens_num_type", 0))]
    numbers += [ctypes.c_bool(True), ctypes.c_int64(args["quant_mode"] if quant_mode is None else quant_mode)]
    return run(
        "aclnnMoeInitRoutingQuantV2",
        [args.get(name) for name in ("x", "expert_idx", "scale", "offset")],
        [(shape, torch.int8), ([slots], torch.int32), *2 * [([experts], torch.int32)], ([rows], torch.float32)],
        lambda *handles: [*handles[:4], *numbers, *handles[4:]],
    )


QUANT_ROUTING = [
    case
    for case in cases("moe_init_routing", "active_expert_range", "row_idx_type")
    if case.args.get("quant_mode", -1) in (0, 1) and case.args.get("expert_tokens_num_type", 0) in (0, 1)
]


@valid(QUANT_ROUTING)
def test_moe_init_routing_quant_v2(case):
    outcome, (x, index, sums_or_counts, all_tokens, scales) = moe_init_routing_quant_v2(case.args)
    assert outcome.status == 0, outcome
    *expected, tokens, row_scales = anynpu.moe_init_routing(**case.args)
    assert_equal([x, index], expected)
    padded = case.args.get("drop_pad_mode", 0) == 1
    assert_equal([all_tokens if padded else sums_or_counts], [tokens.int()])
    if case.args["quant_mode"] == 1:
        assert_equal([scales], [row_scales])
    else:
        assert scales.view(torch.int32).eq(UNTOUCHED).all()


@invalid(QUANT_ROUTING)
def test_invalid_moe_init_routing_quant_v2(case):
    assert_refused(moe_init_routing_quant_v2(case.args)[0], case)


def test_moe_init_routing_quant_v2_quantises():
    outcome, _ = moe_init_routing_quant_v2(QUANT_ROUTING[0].args, quant_mode=-1)
    assert outcome.status == 161002
    assert "quantMode must be 0 (static) or 1 (dynamic), got -1" in outcome.sentence


GATING_TOPK = cases("moe_gating_topk", "input_ids", "tid2eid")


def moe_gating_topk(args, k=None, with_scores=True):
    x, chosen = args["x"], args["k"]
    defaults = {"k_group": 1, "group_count": 1, "group_select_mode": 0, "renorm": 0, "norm_type": 0}
    numbers = [ctypes.c_int64(args.get(name, value)) for name, value in ({"k": chosen} | defaults).items()]
    if k is not None:
        numbers[0] = ctypes.c_int64(k)
    numbers += [ctypes.c_bool(with_scores), ctypes.c_double(args.get("routed_scaling_factor", 1.0))]
    numbers += [ctypes.c_double(1e-20)]
    shape = [x.shape[0], chosen]
    return run(
        "aclnnMoeGatingTopK",
        [x, args.get("bias")],
        [(shape, x.dtype), (shape, torch.int32), (list(x.shape), torch.float32)],
        lambda x, bias, *made: [x, bias, *numbers, *made],
    )


@valid(GATING_TOPK)
def test_moe_gating_topk(case):
    outcome, results = moe_gating_topk(case.args)
    assert outcome.status == 0, outcome
    expected = anynpu.moe_gating_topk(**case.args)
    assert_equal(results, expected)
    outcome, results = moe_gating_topk(case.args, with_scores=False)
    assert outcome.status == 0, outcome
    assert_equal(results[:2], expected[:2])
    assert results[2].view(torch.int32).eq(UNTOUCHED).all()


@invalid(GATING_TOPK)
def test_invalid_moe_gating_topk(case):
    outcome, _ = moe_gating_topk(case.args)
    assert outcome.status == 161002
    assert re.search(case.error["match"], outcome.sentence), outcome


def test_moe_gating_topk_wants_outputs_of_k():
    outcome, _ = moe_gating_topk({"x": torch.randn(3, 8), "k": 2}, k=2**32 + 2)
    assert outcome.status == 161002
    assert "k is 4294967298, but yOut has shape (3, 2)" in outcome.sentence
