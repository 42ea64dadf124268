# SPDX-License-Identifier: Apache-2.0
"""aclnnQuantMatmul in all its versions over the case table, and what only C can get wrong."""

from __future__ import annotations

import ctypes
import re

import c_front_end
import case_table
import pytest
import torch

import anynpu

CASES = case_table.load("quant_matmul", "c")
VALID = [case for case in CASES if case.error is None]
INVALID = [case for case in CASES if case.error is not None]
PLAIN = next(case for case in CASES if case.name == "W8A8 dynamic")
NZ = next(case for case in CASES if case.name == "FRACTAL_NZ weight")


def is_nz(case):
    return case.spec["args"]["x2"].get("format") == "NZ"


def is_int4(case):
    return case.args["x2"].dtype == torch.int32


def versions(case):
    if "group_size" in case.args:
        return ["V5"]
    return [
        *([] if "pertoken_scale" in case.args else ["V3"]),
        "V4",
        "V5",
        *(["WeightNz"] if is_nz(case) else []),
    ]


def stored_transposed(tensor):
    """The matrix whose transpose is the one given, contiguous."""
    return tensor.mT.contiguous()


def columns(case):
    x1, x2 = case.args["x1"], case.args["x2"]
    return x2.shape[-1] * (8 if is_int4(case) and x2.shape[-2] == x1.shape[-1] else 1)


def run(case, version, *, transposed=(), group_size=None, reserved=(None, None, None)):
    """Outcome of the two stages, and out when they succeed; else out was left alone."""
    args = case.args
    x1, x2, dtype = args["x1"], args["x2"], args.get("output_dtype", torch.int8)
    batch = max(x1.shape[:-2], x2.shape[:-2], key=len)
    if case.error is None:
        batch = torch.broadcast_shapes(x1.shape[:-2], x2.shape[:-2])
    shape = [*batch, *x1.shape[-2:-1], columns(case)]
    group_size = args.get("group_size", 0) if group_size is None else group_size
    with c_front_end.session() as make:
        out = make.output(shape, dtype)
        matrices = [
            make.tensor(stored_transposed(x1) if "x1" in transposed else x1),
            make.tensor(stored_transposed(x2) if "x2" in transposed else x2, is_nz(case)),
        ]
        scale, offset, pertoken_scale, bias = (
            make.tensor(args.get(name)) for name in ("scale", "offset", "pertoken_scale", "bias")
        )
        flags = [ctypes.c_bool("x1" in transposed), ctypes.c_bool("x2" in transposed)]
        y_scale, x1_offset, y_offset = (make.tensor(each) for each in reserved)
        arguments = {
            "V3": [scale, offset, bias, *flags],
            "V4": [scale, offset, pertoken_scale, bias, *flags],
        }.get(version) or [
            *(pertoken_scale, scale, y_scale, x1_offset, offset, y_offset, bias, *flags, ctypes.c_int64(group_size))
        ]
        outcome = c_front_end.call(f"aclnnQuantMatmul{version}", *matrices, *arguments, out.handle)
        if outcome.status != 0:
            assert out.is_untouched()
            return outcome, None
        return outcome, out.tensor(shape, dtype)


@pytest.mark.parametrize(
    "transposed", [(), ("x1",), ("x2",), ("x1", "x2")], ids=lambda names: "+".join(names) or "as is"
)
@pytest.mark.parametrize("case", VALID, ids=lambda case: case.name)
def test_valid_call_equals_the_python_front_end(case, transposed):
    if "x2" in transposed and is_int4(case):
        pytest.skip("words of the transposed matrix hold other neighbours")
    expected = anynpu.quant_matmul(**case.args)
    for version in versions(case):
        outcome, out = run(case, version, transposed=transposed)
        assert outcome.status == 0, (version, outcome)
        assert torch.equal(out, expected), version


@pytest.mark.parametrize("case", INVALID, ids=lambda case: case.name)
def test_invalid_call_gives_its_status(case):
    for version in versions(case):
        outcome, _ = run(case, version)
        assert outcome.status == case.error["status"], (version, outcome)
        assert re.search(case.error["match"], outcome.sentence), (version, outcome)


def test_int4_x1_is_refused():
    args = PLAIN.args | {"x1": torch.zeros(19, 300, dtype=torch.int32)}
    outcome, _ = run(case_table.Case("int4", args, {}, PLAIN.spec), "V4")
    assert outcome.status == 161002
    assert "int4 x1 (int32) is not implemented" in outcome.sentence


def test_empty_tensors_stand_for_reserved_arguments():
    empty = torch.empty(0)
    for case, version in ((PLAIN, "V5"), (NZ, "WeightNz")):
        outcome, out = run(case, version, reserved=(empty, empty, empty))
        assert outcome.status == 0, outcome
        assert torch.equal(out, anynpu.quant_matmul(**case.args))


@pytest.mark.parametrize(
    "options, text",
    [
        ({"group_size": 128}, "groups are implemented for int8 x1 and int4 (int32) x2, got int8 and int8"),
        ({"reserved": (torch.ones(1), None, None)}, "yScale must be null or an empty tensor"),
        ({"reserved": (None, torch.ones(1), None)}, "x1Offset must be null or an empty tensor"),
        ({"reserved": (None, None, torch.ones(1))}, "yOffset must be null or an empty tensor"),
    ],
)
def test_arguments_for_other_chips(options, text):
    for case, version in ((PLAIN, "V5"), (NZ, "WeightNz")):
        outcome, _ = run(case, version, **options)
        assert outcome.status == 161002
        assert text in outcome.sentence


def test_weight_nz_wants_that_format():
    outcome, _ = run(PLAIN, "WeightNz")
    assert outcome.status == 161002
    assert "x2 must be in FRACTAL_NZ (29), got format 2" in outcome.sentence
