# SPDX-License-Identifier: Apache-2.0
"""aclnnGroupedMatmulFinalizeRouting in all its versions over the case table, and what only the C call can get wrong."""

from __future__ import annotations

import ctypes
import re

import c_front_end
import case_table
import pytest
import torch
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


def run(case, version, *, code=None, dtype=0, transpose_x=False, transpose_w=False, antiquant=(False, False)):
    """Outcome of the two stages, and y when they succeed; else y was left alone."""
    args = case.args
    x, weight = args["x"], args["weight"]
    shape = [args.get("output_bs", 0) or x.shape[0], weight.shape[-1] * (8 if weight.dtype == torch.int32 else 1)]
    with c_front_end.session() as make:
        y = make.output(shape, torch.float32)
        reserved = [make.tensor(args["bias"]) if given else None for given in antiquant]
        outcome = c_front_end.call(
            f"aclnnGroupedMatmulFinalizeRouting{version}",
            make.tensor(x),
            make.tensor(weight, is_nz(case), code),
            *(make.tensor(args.get(name)) for name in ("scale", "bias")),
            *(() if version in ("", "WeightNz") else (make.tensor(args.get("offset")), *reserved)),
            *(make.tensor(args.get(n)) for n in ("pertoken_scale", "group_list", "shared_input", "logit", "row_index")),
            ctypes.c_int64(dtype),
            ctypes.c_float(args.get("shared_input_weight", 1.0)),
            ctypes.c_int64(args.get("shared_input_offset", 0)),
            ctypes.c_bool(transpose_x),
            ctypes.c_bool(transpose_w),
            ctypes.c_int64(args.get("group_list_type", 1)),
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
        ({"antiquant": (True, False)}, "antiquantScaleOptional must be null"),
        ({"antiquant": (False, True)}, "antiquantOffsetOptional must be null"),
    ],
)
def test_attributes_that_the_document_excludes(options, text):
    outcome, _ = run(PLAIN, "V2", **options)
    assert outcome.status == 161002
    assert text in outcome.sentence
