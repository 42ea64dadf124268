# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import case_table
import torch

import anynpu
from anynpu.ops.anti_quant.reference import error_bound


@case_table.valid_calls("anti_quant")
def test_is_as_close_to_the_reference_as_float32_allows(case, isa, each_thread_count):
    expected = anynpu.reference.anti_quant(**case.args).double()
    before = case.args["x"].clone()
    first, *others = each_thread_count(lambda: anynpu.anti_quant(**case.args))
    assert all(torch.equal(first, other) for other in others)
    overflow = expected.isinf()
    assert torch.equal(first.double()[overflow], expected[overflow])
    assert ((first.double() - expected).abs() <= error_bound(**case.args))[~overflow].all()
    assert torch.equal(case.args["x"], before)


def test_inverts_quantize_up_to_half_a_step():
    x = torch.linspace(-10, 10, 200).reshape(10, 20)
    scale = torch.full((20,), 0.25)
    codes = anynpu.quantize(x, scale, torch.full((20,), 3, dtype=torch.int32), torch.int8)
    restored = anynpu.anti_quant(codes, scale, torch.full((20,), -3.0))
    assert (restored - x).abs().max() <= 0.125 + 10 * torch.finfo(torch.float16).eps
