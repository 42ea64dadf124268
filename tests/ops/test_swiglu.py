# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import case_table
import gpu_cases
import pytest
import torch

import anynpu
from anynpu.ops.swiglu.reference import error_bound


@case_table.valid_calls("swiglu")
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
