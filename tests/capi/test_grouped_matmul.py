# SPDX-License-Identifier: Apache-2.0
"""aclnnGroupedMatmulV4, V5: the rows of the case table with one x and one weight, and what C does not have."""

from __future__ import annotations

import ctypes

import c_front_end
import case_table
import pytest
import torch
from c_front_end import INT4

import anynpu

LISTS = ("x", "weight", "bias", "scale", "offset", "antiquant_scale", "antiquant_offset", "per_token_scale")


def is_provided(case):
    """One int8 x, one 3-D weight; int32 sums without a bias, scales for each column without a bias, or int4 weights."""
    args = case.args
    x, weight = args["x"], args["weight"]
    if len(x) != 1 or len(weight) != 1 or weight[0].dim() != 3 or x[0].dtype != torch.int8:
        return False
    if args.get("group_list_type", 0) == 2 or args.get("split_item", 0) not in (2, 3):
        return False
    if weight[0].dtype == torch.int32:
        return args["per_token_scale"][0].dim() == 1 if "per_token_scale" in args else True
    return "bias" not in args and args.get("output_dtype") != torch.int8


ALL = [case for case in case_table.load("grouped_matmul", "c") if case.error is None]
PROVIDED = [case for case in ALL if is_provided(case)]
SUMS = next(case for case in PROVIDED if case.name == "int32 sums")
SCALED = next(case for case in PROVIDED if case.name == "W8A8 bfloat16")
REFUSED = [case for case in ALL if not is_provided(case) and case.args.get("split_item", 0) in (2, 3)]


def shape_of(args):
    weight = args["weight"][0]
    n = weight.shape[-1] * (8 if weight.dtype == torch.int32 else 1)
    return [*args["x"][0].shape[:-1], n]


def run(args, *, code=None, attributes=(), lists=(), version="V4"):
    """Outcome of the two stages, and out when they succeed; else out was left alone."""
    named = {"split_item": 2, "group_type": 0, "group_list_type": 0, "act_type": 0} | {
        key: value for key, value in args.items() if key in ("split_item", "group_type", "group_list_type")
    }
    named |= dict(attributes)
    tensors = {name: args.get(name) for name in LISTS} | dict(lists)
    shape, dtype = shape_of(args), args.get("output_dtype")
    if dtype is None:
        dtype = args["x"][0].dtype if args["x"][0].is_floating_point() else torch.int32
    with c_front_end.session() as make:
        out = make.output(shape, dtype)

        def made(name):
            """A null pointer for an absent list."""
            value = tensors.get(name)
            own = code if name == "weight" else None
            return None if value is None else make.tensors([make.tensor(each, code=own) for each in value])

        outcome = c_front_end.call(
            f"aclnnGroupedMatmul{version}",
            *map(made, LISTS),
            make.tensor(args.get("group_list")),
            *map(made, ("input", "quant_scale", "quant_offset")),
            *(ctypes.c_int64(named[name]) for name in ("split_item", "group_type", "group_list_type", "act_type")),
            *([make.ints([4])] if version == "V5" else []),
            make.tensors([out.handle]),
            *map(made, ("feature", "dynamic")),
        )
        if outcome.status != 0:
            assert out.is_untouched()
            return outcome, None
        return outcome, out.tensor(shape, dtype)


@pytest.mark.parametrize("version", ["V4", "V5"])
@pytest.mark.parametrize("case", PROVIDED, ids=lambda case: case.name)
def test_valid_call_equals_the_python_front_end(case, version):
    outcome, y = run(case.args, version=version)
    assert outcome.status == 0, outcome
    assert torch.equal(y, anynpu.grouped_matmul(**case.args)[0])


def test_int4_tensors_hold_the_same_bytes_as_int32_words():
    case = next(case for case in PROVIDED if case.name == "W4A8 per channel")
    outcome, y = run(case.args, code=INT4)
    assert outcome.status == 0, outcome
    assert torch.equal(y, anynpu.grouped_matmul(**case.args)[0])


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_other_modes_are_refused_with_a_sentence(case):
    outcome, _ = run(case.args)
    assert outcome.status == 161002, outcome
    assert outcome.sentence.startswith("[161002] aclnnGroupedMatmulV4GetWorkspaceSize: ")


@pytest.mark.parametrize(
    "attributes, text",
    [
        ({"split_item": 0}, "splitItem must be 2 or 3 (one result), got 0"),
        ({"group_type": 2}, "groupType must be 0 (groups of rows), others are not implemented, got 2"),
        ({"group_list_type": 2}, "groupListType must be 0 (running sums) or 1 (counts), got 2"),
        ({"group_list_type": 2**32}, "groupListType must be 0 (running sums) or 1 (counts), got 4294967296"),
        ({"act_type": 1}, "actType must be 0, activations are not implemented, got 1"),
    ],
)
def test_attributes(attributes, text):
    outcome, _ = run(SCALED.args, attributes=attributes)
    assert outcome.status == 161002
    assert text in outcome.sentence


@pytest.mark.parametrize(
    "name, text",
    [
        ("offset", "offsetOptional"),
        ("antiquant_scale", "antiquantScaleOptional"),
        ("antiquant_offset", "antiquantOffsetOptional"),
        ("input", "activationInputOptional"),
        ("quant_scale", "activationQuantScaleOptional"),
        ("quant_offset", "activationQuantOffsetOptional"),
        ("feature", "activationFeatureOutOptional"),
        ("dynamic", "dynQuantScaleOutOptional"),
    ],
)
def test_lists_that_must_be_empty(name, text):
    outcome, _ = run(SCALED.args, lists={name: [torch.ones(3)]})
    assert outcome.status == 161002
    assert f"{text} must be null or empty, what it asks for is not implemented" in outcome.sentence


def test_empty_lists_are_absent():
    names = ("bias", "offset", "antiquant_scale", "antiquant_offset", "input", "quant_scale", "quant_offset", "feature")
    outcome, y = run(SCALED.args, lists={name: [] for name in names})
    assert outcome.status == 0, outcome
    assert torch.equal(y, anynpu.grouped_matmul(**SCALED.args)[0])


@pytest.mark.parametrize("name", ["x", "weight"])
def test_lists_that_are_required(name):
    outcome, _ = run(SUMS.args, lists={name: None})
    assert outcome.status == 161001, outcome
    assert f"{name} is a null pointer" in outcome.sentence


def test_groups_that_the_data_get_wrong():
    args = SUMS.args | {"group_list": torch.tensor([4, 3, 9])}
    outcome, _ = run(args)
    assert outcome.status == 361001
    assert "group_list[1] must be in [4, 9] (running sums, x has 9 rows), got 3" in outcome.sentence
