# SPDX-License-Identifier: Apache-2.0
"""aclnnGroupedMatmul to V5: the case table, what only C has (results of groups, groups along K), refusals."""

from __future__ import annotations

import ctypes
import re

import c_front_end
import case_table
import pytest
import torch
from c_front_end import INT4

import anynpu

LISTS = ("x", "weight", "bias", "scale", "offset", "antiquant_scale", "antiquant_offset", "per_token_scale")
NEWER = ("V4", "V5")

ALL = case_table.load("grouped_matmul", "c")
VALID = [case for case in ALL if case.error is None]
INVALID = [case for case in ALL if case.error is not None and case.error["python"] != "NotImplementedError"]
SUMS, SCALED, HALVES = (
    next(case for case in VALID if case.name == name) for name in ("int32 sums", "W8A8 bfloat16", "float16")
)


def columns(weight):
    return weight.shape[-1] * (8 if weight.dtype == torch.int32 else 1)


def shapes_of(args):
    """As the Python front end has them; many results of one x are those of its groups."""
    x, n = args["x"], [columns(each) for each in args["weight"]]
    if args.get("split_item", 0) in (2, 3):
        return [[sum(each.shape[0] for each in x), n[0]]]
    return [[*rows.shape[:-1], own] for rows, own in zip(x, n, strict=False)]


def dtype_of(args):
    x = args["x"][0].dtype
    if args.get("output_dtype") is not None:
        return args["output_dtype"]
    if x.is_floating_point:
        return x
    return torch.int8 if args.get("scale") else torch.int32


def run(args, *, code=None, attributes=(), lists=(), version="V4", shapes=None, nz=False):
    """Outcome of the two stages, and the results when they succeed; else they were left alone."""
    named = {"split_item": 0, "group_type": -1, "group_list_type": 0, "act_type": 0} | {
        key: value for key, value in args.items() if key in ("split_item", "group_type", "group_list_type")
    }
    named |= dict(attributes)
    tensors = {name: args.get(name) for name in LISTS} | dict(lists)
    shapes, dtype = shapes or shapes_of(args), dtype_of(args)
    with c_front_end.session() as make:
        made = [make.output(shape, dtype) for shape in shapes]

        def listed(name):
            """A null pointer for an absent list."""
            value, of_weight = tensors.get(name), name == "weight"
            if value is None:
                return None
            return make.tensors(
                [make.tensor(each, code=code if of_weight else None, nz=nz and of_weight) for each in value]
            )

        def numbers(*names):
            return [ctypes.c_int64(named[name]) for name in names]

        group_list, results = args.get("group_list"), make.tensors([each.handle for each in made])
        given = [listed(name) for name in (LISTS if version in NEWER else LISTS[:-1])]
        if version in ("", "V2"):
            given.append(None if group_list is None else make.ints(group_list.tolist()))
        else:
            given.append(make.tensor(group_list))
        if version in NEWER:
            given += [listed(name) for name in ("input", "quant_scale", "quant_offset")]
            given += numbers("split_item", "group_type", "group_list_type", "act_type")
            given += [make.ints([4])] if version == "V5" else []
            given += [results, *map(listed, ("feature", "dynamic"))]
        else:
            given += [*numbers("split_item", *(["group_type"] if version else [])), results]
        outcome = c_front_end.call(f"aclnnGroupedMatmul{version}", *given)
        if outcome.status != 0:
            assert all(each.is_untouched() for each in made)
            return outcome, None
        return outcome, [each.tensor(shape, dtype) for each, shape in zip(made, shapes, strict=True)]


def assert_close(results, args):
    """As near to the oracle as the Python front end must be; products of integers are equal to its results."""
    bounds = anynpu.ops.grouped_matmul.reference.error_bound(**args)
    for result, want, bound in zip(results, anynpu.reference.grouped_matmul(**args), bounds, strict=True):
        assert ((result.double() - want.double()).abs() <= bound).all()
    if not (args["x"][0].is_floating_point() and args["weight"][0].is_floating_point()):
        assert all(map(torch.equal, results, anynpu.grouped_matmul(**args)))


@pytest.mark.parametrize("version", NEWER)
@pytest.mark.parametrize("case", VALID, ids=lambda case: case.name)
def test_valid_calls(case, version, isa):
    outcome, results = run(case.args, version=version)
    assert outcome.status == 0, outcome
    assert_close(results, case.args)


OLDER = [case for case in VALID if "per_token_scale" not in case.args and not case.args.get("group_list_type")]


@pytest.mark.parametrize("version", ["", "V2", "V3"])
@pytest.mark.parametrize("case", OLDER, ids=lambda case: case.name)
def test_older_versions(case, version):
    outcome, results = run(case.args, version=version)
    assert outcome.status == 0, outcome
    assert_close(results, case.args)


@pytest.mark.parametrize("case", INVALID, ids=lambda case: case.name)
def test_invalid_calls(case):
    outcome, _ = run(case.args, shapes=None if len(case.args["weight"]) == 1 else [[4, 8]])
    assert outcome.status == case.error.get("status", 161002), outcome
    assert outcome.sentence.startswith(f"[{outcome.status}] aclnnGroupedMatmulV4"), outcome
    if "status" in case.error:
        assert re.search(case.error["match"], outcome.sentence), outcome


@pytest.mark.parametrize("name", ["W4A8 per channel", "W4A8 lists", "W4A16 per group with offset"])
def test_int4_tensors_hold_the_same_bytes_as_int32_words(name):
    case = next(case for case in VALID if case.name == name)
    outcome, results = run(case.args, code=INT4)
    assert outcome.status == 0, outcome
    assert_close(results, case.args)


@pytest.mark.parametrize(
    "name",
    [
        "W8A8 int32 bias",
        "W8A16 per channel",
        "W8A8 float bias, transposed weight",
        "float16",
        "float32",
        "bfloat16 lists",
    ],
)
def test_blocks_hold_the_same_weight(name):
    case = next(case for case in VALID if case.name == name)
    outcome, results = run(case.args, nz=True)
    assert outcome.status == 0, outcome
    assert_close(results, case.args)


def generator(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("version", ["", "V2", "V3", "V4", "V5"])
def test_one_x_gives_a_result_to_each_group(version, dtype):
    x = torch.randn(9, 40, generator=generator(1)).to(dtype)
    weight = [torch.randn(40, n, generator=generator(n)).to(dtype) for n in (8, 3, 5)]
    bias = [
        torch.randn(n, generator=generator(n)).to(dtype if dtype == torch.float16 else torch.float32) for n in (8, 3, 5)
    ]
    args = {"x": [x], "weight": weight, "bias": bias, "group_list": torch.tensor([4, 4, 9])}
    args |= {"split_item": 0, "group_type": 0}
    outcome, results = run(args, version=version, shapes=[[4, 8], [0, 3], [5, 5]])
    assert outcome.status == 0, outcome
    for rows, w, b, result in zip(x.split([4, 0, 5]), weight, bias, results, strict=True):
        expected = rows.double() @ w.double() + b.double()
        torch.testing.assert_close(result.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-4)
    outcome, _ = run(args, version=version, shapes=[[4, 8], [1, 3], [4, 5]])
    assert outcome.status == (161002 if version in ("", "V2") else 361001), outcome
    assert "group_list must give group 1 the 1 rows of its tensors, got 0" in outcome.sentence


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_groups_along_k(dtype):
    x = torch.randn(40, 9, generator=generator(1)).to(dtype).t()
    weight = torch.randn(40, 6, generator=generator(2)).to(dtype)
    args = {"x": [x], "weight": [weight], "group_list": torch.tensor([16, 16, 30]), "group_type": 2, "split_item": 3}
    expected = [x[:, a:b].double() @ weight[a:b].double() for a, b in ((0, 16), (16, 16), (16, 30))]
    tolerance = {"rtol": torch.finfo(dtype).eps, "atol": 1e-4}
    for version in ("V2", "V3", "V4"):
        outcome, (result,) = run(args, version=version, shapes=[[3, 9, 6]])
        assert outcome.status == 0, outcome
        torch.testing.assert_close(result.double(), torch.stack(expected), **tolerance)
    lists = args | {"split_item": 0}
    outcome, results = run(lists, shapes=[[9, 6]] * 3)
    assert outcome.status == 0, outcome
    torch.testing.assert_close(torch.stack(results).double(), torch.stack(expected), **tolerance)
    cut = lists | {"weight": list(weight[:30].split([16, 0, 14]))}
    outcome, results = run(cut, shapes=[[9, 6]] * 3)
    assert outcome.status == 0, outcome
    torch.testing.assert_close(torch.stack(results).double(), torch.stack(expected), **tolerance)
    outcome, _ = run(args, nz=True, shapes=[[3, 9, 6]])
    assert outcome.status == 161002
    assert "one weight must be ND with groupType 2, got format 29" in outcome.sentence
    outcome, results = run(cut, nz=True, shapes=[[9, 6]] * 3)
    assert outcome.status == 0, outcome
    torch.testing.assert_close(torch.stack(results).double(), torch.stack(expected), **tolerance)
    counts = args | {"group_list": torch.tensor([30, 11]), "group_list_type": 1}
    outcome, _ = run(counts, shapes=[[2, 9, 6]])
    assert outcome.status == 361001
    assert "group_list[1] must be in [0, 10] (counts, x has 40 columns), got 11" in outcome.sentence


def test_results_do_not_depend_on_threads(each_thread_count):
    args = HALVES.args
    first, *others = each_thread_count(lambda: run(args)[1][0])
    assert all(torch.equal(first, other) for other in others)


ONES = torch.ones
INT8 = torch.ones(4, 8, dtype=torch.int8)
GROUP = torch.tensor([4])
REFUSALS = {
    "no groups with one result": ({"split_item": 2, "group_type": -1}, "groupType -1 .* wants splitItem 0 or 1"),
    "no groups with a list": ({"split_item": 0, "group_type": -1}, "groupListOptional null"),
    "no list": ({"group_list": None}, "groupListOptional must be given with one x and groupType 0"),
    "many x with many results": ({"x": [ONES(4, 8)] * 2, "split_item": 1}, "x must hold one tensor .* 0 or 1, got 2"),
    "lists of other lengths": ({"x": [ONES(4, 8)] * 2}, "equally many tensors, or x one and groups, got 2 and 1"),
    "too few results": ({"split_item": 0, "weight": [ONES(8, 6)] * 2}, "out must hold 2 tensors .* 0 or 1, got 1"),
    "dtypes of a list": ({"weight": [ONES(8, 6), ONES(8, 6).half()]}, "all tensors of weight must have one dtype"),
    "biases": ({"bias": [ONES(1, 6)] * 2}, "biasOptional must have one tensor for each of weight, 1, got 2"),
    "bias of a stack": ({"bias": [ONES(6)]}, r"biasOptional must have 1 along the first of 2 or 3 axes, .* \(6,\)"),
    "bias": ({"bias": [ONES(1, 5)]}, r"group 0: bias must have shape \(N,\) = \(6,\), got \(5,\)"),
    "dtype of x": ({"x": [ONES(4, 8).int()]}, "x must be int8, float16, bfloat16 or float32, others .* got int32"),
    "axes of x": ({"x": [ONES(2, 2, 8)]}, r"x must have 2 axes, got \(2, 2, 8\)"),
    "axes of weight": ({"weight": [ONES(1, 1, 8, 6)]}, r"weight must have 2 axes, got \(1, 1, 8, 6\)"),
    "K": ({"weight": [ONES(1, 7, 6)]}, "group 0: K of x and weight must be equal, got 8 and 7"),
    "list of floats": ({"group_list": ONES(1)}, "groupListOptional must be int64, got float32"),
    "long list": ({"group_list": torch.tensor([1, 4])}, r"\(E,\) = \(1,\), one entry a group, got \(2,\)"),
    "no pairs": ({"group_list_type": 2}, r"must have shape \(E, 2\) of \(group, size\), got \(1,\)"),
    "weights of another dtype": ({"weight": [ONES(1, 8, 6).half()]}, "weight of float x .* be float32, got float16"),
    "antiquantised float32": (
        {"weight": [INT8.t()[None]], "antiquant_scale": [ONES(1, 4)], "shapes": [[4, 4]]},
        "x with antiquantScaleOptional must be float16 or bfloat16, got float32",
    ),
    "offset without scale": ({"antiquant_offset": [ONES(1, 6)]}, "antiquantOffsetOptional must be null or empty"),
    "scale of floats": ({"scale": [ONES(1, 6)]}, "scaleOptional must be null or empty with float x"),
    "float sums of int8": (
        {"x": [INT8], "weight": [INT8.t()[None]], "output_dtype": torch.float16, "shapes": [[4, 4]]},
        "out without scaleOptional must be int32, got float16",
    ),
    "scales of tokens": (
        {
            "x": [INT8], "weight": [INT8.t()[None]], "output_dtype": torch.float16, "shapes": [[4, 4]],
            "scale": [ONES(1, 4)], "per_token_scale": [ONES(5)],
        },
        r"perTokenScaleOptional must have shape \(M,\) or \(M, 1\) and x \(M, K\), got \(5,\) and \(4, 8\)",
    ),
    "rows of out": ({"shapes": [[5, 6]]}, r"out must have the 4 rows of x, got \(5, 6\)"),
    "integers along K": (
        {"x": [INT8], "weight": [torch.ones(8, 6, dtype=torch.int8)], "group_type": 2, "shapes": [[1, 4, 6]]},
        "groupType 2 .* is implemented for float x and weight",
    ),
    "matrices of out": ({"weight": [ONES(8, 6)], "group_type": 2, "shapes": [[2, 4, 6]]}, "out must have 1 matrices"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name):
    changes, sentence = REFUSALS[name]
    args = {"x": [ONES(4, 8)], "weight": [ONES(1, 8, 6)], "group_list": GROUP, "split_item": 2, "group_type": 0}
    args |= {key: value for key, value in changes.items() if key != "shapes"}
    outcome, _ = run(args, shapes=changes.get("shapes", [[4, 6]]))
    assert outcome.status == 161002, outcome
    assert re.search(sentence, outcome.sentence), outcome


@pytest.mark.parametrize(
    "attributes, text",
    [
        ({"split_item": 4}, "splitItem must be 0, 1, 2 or 3, got 4"),
        ({"group_type": 1}, "groupType must be -1 (no groups), 0 (along M) or 2 (along K), got 1"),
        ({"group_list_type": 3}, "groupListType must be 0 (running sums), 1 (counts) or 2 (pairs of group and count)"),
        ({"group_list_type": 2**32}, "groupListType must be 0 (running sums), 1 (counts) or 2"),
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
    outcome, results = run(SCALED.args, lists={name: [] for name in names})
    assert outcome.status == 0, outcome
    assert_close(results, SCALED.args)


@pytest.mark.parametrize("name", ["x", "weight"])
def test_lists_that_are_required(name):
    outcome, _ = run(SUMS.args, lists={name: None})
    assert outcome.status == 161001, outcome
    assert f"{name} is a null pointer" in outcome.sentence


def test_groups_that_the_data_get_wrong():
    args = SUMS.args | {"group_list": torch.tensor([4, 3, 9])}
    for version, status in (("V4", 361001), ("V3", 361001), ("V2", 161002)):
        outcome, _ = run(args, version=version)
        assert outcome.status == status
        assert "group_list[1] must be in [4, 9] (running sums, x has 9 rows), got 3" in outcome.sentence


def test_a_bias_that_is_too_large_leaves_the_groups_before_it_alone():
    args = next(case for case in VALID if case.name == "W8A8 int32 bias").args
    bias = args["bias"][0].clone()
    bias[2, 1] = 2**31 - 1
    outcome, _ = run(args | {"bias": [bias]})
    assert outcome.status == 361001, outcome
    assert "group 2: |bias| must be at most" in outcome.sentence


@pytest.mark.parametrize("place", [(0, 0, 0), (1, 0, 7)])
def test_a_bias_of_batches_that_is_too_large_leaves_the_pairs_before_it_alone(place):
    x, weight = [ONES(3, 16).to(torch.int8), ONES(2, 3, 16).to(torch.int8)], [ONES(16, 8).to(torch.int8)] * 2
    bias = [ONES(8).int(), ONES(2, 1, 8).int()]
    args = {"x": x, "weight": weight, "bias": bias}
    outcome, results = run(args)
    assert outcome.status == 0, outcome
    assert all(result.eq(17).all() for result in results)
    bias[1][place] = 2**31 - 1 - 2**14 * 16
    assert run(args)[0].status == 0
    bias[1][place] += 1
    outcome, _ = run(args)
    assert outcome.status == 361001, outcome
    assert "group 1: |bias| must be at most 2147221503 so that int32 sums are exact, got 2147221504" in outcome.sentence
