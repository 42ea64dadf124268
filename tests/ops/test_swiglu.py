# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import builtins

import case_table
import pytest

import anynpu
from anynpu.ops.swiglu.reference import error_bound

CASES = case_table.load("swiglu")
VALID = [case for case in CASES if case.error is None]
INVALID = [case for case in CASES if case.error is not None]


def names(cases):
    return [case.name for case in cases]


@pytest.mark.parametrize("case", VALID, ids=names(VALID))
def test_is_as_close_to_the_reference_as_float32_allows(case):
    result, expected = anynpu.swiglu(**case.args), anynpu.reference.swiglu(**case.args)
    assert (result.dtype, result.shape) == (expected.dtype, expected.shape)
    assert ((result.double() - expected.double()).abs() <= error_bound(**case.args)).all()


@pytest.mark.parametrize("function", [anynpu.swiglu, anynpu.reference.swiglu], ids=["cpu", "reference"])
@pytest.mark.parametrize("case", INVALID, ids=names(INVALID))
def test_invalid_call_raises(case, function):
    with pytest.raises(getattr(builtins, case.error["python"]), match=case.error["match"]):
        function(**case.args)
