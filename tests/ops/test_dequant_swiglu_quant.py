# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import case_table
import torch

import anynpu
from anynpu.ops.dequant_swiglu_quant.reference import error_bound


@case_table.valid_calls("dequant_swiglu_quant")
def test_is_as_close_to_the_reference_as_float32_allows(case, isa, each_thread_count):
    codes, scale = anynpu.reference.dequant_swiglu_quant(**case.args)
    code_bound, scale_bound = error_bound(**case.args)
    first, *others = each_thread_count(lambda: anynpu.dequant_swiglu_quant(**case.args))
    for other in others:
        assert torch.equal(other[0], first[0]) and torch.equal(other[1], first[1])
    assert ((first[0].double() - codes.double()).abs() <= code_bound).all()
    off = (first[1].double() - scale.double()).abs()
    assert ((off <= scale_bound) | (first[1] == scale)).all()
    assert code_bound.sum() <= 0.002 * max(code_bound.numel(), 1000)  # the bound leaves nearly every code exact


def test_the_right_half_is_activated_unless_told_otherwise():
    x = torch.tensor([[3.0, -2.0]], dtype=torch.float16)
    silu = torch.nn.functional.silu
    for left, value in ((False, silu(torch.tensor(-2.0)) * 3), (True, silu(torch.tensor(3.0)) * -2)):
        y, scale = anynpu.dequant_swiglu_quant(x, activate_left=left, quant_mode=1)
        torch.testing.assert_close(y[0, 0] * scale[0], value, rtol=1e-6, atol=0)


def test_equals_a_composition_of_torch_functions(isa):
    """Dequantised codes are within half a step of what float64 gives for the layer of a model."""
    generator = torch.Generator().manual_seed(1)
    sums = torch.randint(-40000, 40000, (33, 512), generator=generator, dtype=torch.int32)
    columns, rows = torch.rand(512, generator=generator) * 1e-4, torch.rand(33, generator=generator) + 0.5
    y, scale = anynpu.dequant_swiglu_quant(
        sums, weight_scale=columns, activation_scale=rows, activate_left=True, quant_mode=1
    )
    gate, up = (sums.double() * columns.double() * rows.double().unsqueeze(1)).chunk(2, dim=-1)
    exact = torch.nn.functional.silu(gate) * up
    step = scale.double().unsqueeze(1)
    assert ((y * step - exact).abs() <= step * (0.5 + 1e-4)).all()
