# SPDX-License-Identifier: Apache-2.0
"""The operators that take tokens to experts and back over their case tables, and what only C can get wrong."""

from __future__ import annotations

import ctypes
import re

import c_front_end
import pytest
import torch
from c_cases import UNTOUCHED, assert_equal, assert_refused, cases, invalid, run, valid

import anynpu

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
    if case.args.get("expert_tokens_num_type", 0) in (-1, 3):
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
