# SPDX-License-Identifier: Apache-2.0
"""aclnnGroupedMatmulFinalizeRouting in all its versions over the case table, and what only the C call can get wrong."""

from __future__ import annotations

import ctypes
import re
from types import SimpleNamespace

import c_front_end
import case_table
import pytest
import torch
from c_cases import strict_lines
from c_front_end import INT4

import anynpu

CASES = case_table.load("grouped_matmul_combine", "c")
VALID = [case for case in CASES if case.error is None]
INVALID = [case for case in CASES if case.error is not None]
PLAIN = next(case for case in CASES if case.name == "W4A8 per channel")


def is_nz(case):
    return case.spec["args"]["weight"].get("format") == "NZ"


def versions(case):
    newer = ["V2", "V3", *(["WeightNzV2"] if is_nz(case) else [])]
    return newer if "offset" in case.args else ["", *newer, *(["WeightNz"] if is_nz(case) else [])]


def inputs(make, case, version, *, code=None, antiquant=(False, False)):
    """The handles of the tensors that the call reads, in its order; None: a null pointer."""
    args = case.args
    reserved = [make.tensor(args["bias"]) if given else None for given in antiquant]
    return [
        make.tensor(args["x"]),
        make.tensor(args["weight"], is_nz(case), code),
        *(make.tensor(args.get(name)) for name in ("scale", "bias")),
        *(() if version in ("", "WeightNz") else (make.tensor(args.get("offset")), *reserved)),
        *(make.tensor(args.get(n)) for n in ("pertoken_scale", "group_list", "shared_input", "logit", "row_index")),
    ]


def attributes(args, dtype=0, transpose_x=False, transpose_w=False):
    return (
        ctypes.c_int64(dtype),
        ctypes.c_float(args.get("shared_input_weight", 1.0)),
        ctypes.c_int64(args.get("shared_input_offset", 0)),
        ctypes.c_bool(transpose_x),
        ctypes.c_bool(transpose_w),
        ctypes.c_int64(args.get("group_list_type", 1)),
    )


def run(case, version, *, code=None, antiquant=(False, False), **options):
    """Outcome of the two stages, and y when they succeed; else y was left alone."""
    args = case.args
    x, weight = args["x"], args["weight"]
    shape = [args.get("output_bs", 0) or x.shape[0], weight.shape[-1] * (8 if weight.dtype == torch.int32 else 1)]
    with c_front_end.session() as make:
        y = make.output(shape, torch.float32)
        outcome = c_front_end.call(
            f"aclnnGroupedMatmulFinalizeRouting{version}",
            *inputs(make, case, version, code=code, antiquant=antiquant),
            *attributes(args, **options),
            *((make.ints([0]),) if version in ("V3", "WeightNzV2") else ()),
            y.handle,
        )
        if outcome.status != 0:
            assert y.is_untouched()
            return outcome, None
        return outcome, y.tensor(shape, torch.float32)


@pytest.mark.parametrize("case", VALID, ids=lambda case: case.name)
def test_valid_call_equals_the_python_front_end(case):
    expected = anynpu.grouped_matmul_combine(**case.args)
    for version in versions(case):
        outcome, y = run(case, version)
        assert outcome.status == 0, (version, outcome)
        assert torch.equal(y, expected), version


@pytest.mark.parametrize("case", INVALID, ids=lambda case: case.name)
def test_invalid_call_gives_its_status(case):
    for version in versions(case):
        outcome, _ = run(case, version)
        assert outcome.status == case.error["status"], (version, outcome)
        assert re.search(case.error["match"], outcome.sentence), (version, outcome)


@pytest.mark.parametrize("version", ["", "V2"])
def test_tensors_are_counted_as_the_call_has_them(version):
    function = getattr(c_front_end.operators, f"aclnnGroupedMatmulFinalizeRouting{version}GetWorkspaceSize")
    with c_front_end.session() as make:
        handles = inputs(make, PLAIN, version)
        y = make.output([PLAIN.args["x"].shape[0], PLAIN.args["weight"].shape[-1] * 8], torch.float32)
        pointers = [ctypes.c_void_p(handle) for handle in (*handles, y.handle)]
        size, executor = ctypes.c_uint64(), ctypes.c_void_p()
        tail = (pointers[-1], ctypes.byref(size), ctypes.byref(executor))
        c_front_end.require(function(*pointers[:-1], *attributes(PLAIN.args), *tail))
        c_front_end.require(c_front_end.base.aclSetAclOpExecutorRepeatable(executor))
        for index, pointer in enumerate(pointers):
            if pointer.value is not None:
                address = ctypes.c_void_p(make.find(pointer.value).address)
                place = ctypes.c_size_t(index)
                c_front_end.require(c_front_end.base.aclSetTensorAddr(executor, place, pointer, address))
        c_front_end.require(c_front_end.base.aclDestroyAclOpExecutor(executor))


def test_int4_tensors_hold_the_same_bytes_as_int32_words():
    outcome, y = run(PLAIN, "", code=INT4)
    assert outcome.status == 0, outcome
    assert torch.equal(y, anynpu.grouped_matmul_combine(**PLAIN.args))


@pytest.mark.parametrize("version", ["WeightNz", "WeightNzV2"])
def test_weight_nz_wants_that_format(version):
    outcome, _ = run(PLAIN, version)
    assert outcome.status == 161002
    assert "w must be in FRACTAL_NZ (29), got format 2" in outcome.sentence


@pytest.mark.parametrize(
    "options, text",
    [
        ({"dtype": 1}, "dtype must be 0 (FLOAT32), got 1"),
        ({"transpose_x": True}, "transposeX must be false"),
        ({"transpose_w": True}, "transposeW must be false"),
        ({"antiquant": (True, False)}, "antiquantScaleOptional must be null or an empty tensor"),
        ({"antiquant": (False, True)}, "antiquantOffsetOptional must be null or an empty tensor"),
    ],
)
def test_attributes_that_the_document_excludes(options, text):
    outcome, _ = run(PLAIN, "V2", **options)
    assert outcome.status == 161002
    assert text in outcome.sentence


def call_of(m=4, k=8, n=8, experts=1, batch=4, shared=0, int4=True, groups=1, layout="ND"):
    """A call whose first stage is all that is wanted."""
    weight = torch.zeros(experts, k, n // 8, dtype=torch.int32) if int4 else torch.zeros(experts, k, n).to(torch.int8)
    args = {
        "x": torch.zeros(m, k, dtype=torch.int8),
        "weight": weight,
        "scale": torch.zeros(experts, groups, n, dtype=torch.int64) if int4 else torch.ones(experts, n),
        "group_list": torch.zeros(experts, dtype=torch.int64),
        "row_index": torch.zeros(m, dtype=torch.int64),
        "output_bs": batch,
        **({"shared_input": torch.zeros(shared, n, dtype=torch.bfloat16)} if shared else {}),
    }
    return SimpleNamespace(args=args, spec={"args": {"weight": {"format": layout}}})


BEYOND = [
    ("wants m in [1, 16 * 1024 * 8 = 131072], got 131073", "", {"m": 131073}),
    ("wants e in [1, 256], got 257", "", {"experts": 257}),
    ("wants at most 16 * 1024 = 16384 rows of y, got 16385", "", {"batch": 16385}),
    ("with int4 weights wants k = 2048, got 64", "", {"k": 64}),
    ("with int4 weights wants n = 7168, got 16", "V2", {"k": 2048, "n": 16}),
    ("wants 1 to 2 * 1024 = 2048 rows of sharedInput, got 2049", "V2", {"batch": 2049, "shared": 2049, "int4": False}),
    ("wants w in int32 or int4, got int8", "", {"int4": False}),
    ("wants w in ND (2), got format 29", "", {"layout": "NZ"}),
    ("wants scale of shape (e, 1, n), got (1, 2, 8)", "", {"groups": 2}),
]


def beyond():
    return [run(call_of(**sizes), version)[0] for _, version, sizes in BEYOND]


def test_limits_of_a_chip_in_strict_mode():
    assert all(outcome.status == 0 for outcome in beyond())
    for line, (rule, _, _) in zip(strict_lines("Ascend910B", "test_grouped_matmul_combine"), BEYOND, strict=True):
        assert line.startswith("161002 "), line
        assert f"Ascend910B (Atlas A2) {rule}" in line
