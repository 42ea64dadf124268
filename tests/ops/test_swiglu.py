# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import builtins

import case_table
import gpu_cases
import pytest
import torch

import anynpu
from anynpu.ops.swiglu.reference import error_bound

CASES = case_table.load("swiglu")
VALID = [case for case in CASES if case.error is None]
INVALID = [case for case in CASES if case.error is not None]


def names(cases):
    return [case.name for case in cases]


@pytest.mark.parametrize("case", VALID, ids=names(VALID))
def test_is_as_close_to_the_reference_as_float32_allows(case, isa, each_thread_count):
    expected, bound = anynpu.reference.swiglu(**case.args), error_bound(**case.args)
    first, *others = each_thread_count(lambda: anynpu.swiglu(**case.args))
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=0, equal_nan=True)
    gpu_cases.assert_within(first, expected, bound)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_bits_do_not_depend_on_the_place(dtype, isa):
    gate, linear = (3 * torch.randn(2, 100, generator=torch.Generator().manual_seed(0))).to(dtype)
    whole = anynpu.swiglu(torch.cat([gate, linear]))
    for first, last in ((0, 1), (1, 18), (5, 40), (31, 100)):
        assert torch.equal(anynpu.swiglu(torch.cat([gate[first:last], linear[first:last]])), whole[first:last])


@pytest.mark.parametrize("function", [anynpu.swiglu, anynpu.reference.swiglu], ids=["cpu", "reference"])
@pytest.mark.parametrize("case", INVALID, ids=names(INVALID))
def test_invalid_call_raises(case, function):
    with pytest.raises(getattr(builtins, case.error["python"]), match=case.error["match"]):
        function(**case.args)
