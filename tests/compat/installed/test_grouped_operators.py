# SPDX-License-Identifier: Apache-2.0
"""npu_grouped_matmul: its forms of arguments and results."""

from __future__ import annotations

import pytest
import torch
import torch_npu
from npu_tensors import codes, halves, reals

import anynpu


def test_grouped_matmul_takes_a_list_of_numbers_and_bare_tensors():
    x, weight = halves(6, 16), halves(2, 16, 8, seed=1)
    expected = torch_npu.npu_grouped_matmul([x], [weight], group_list=torch.tensor([2, 6]), split_item=2, group_type=0)
    for group_type in (0, None):
        result = torch_npu.npu_grouped_matmul(x, weight, group_list=[2, 6], split_item=2, group_type=group_type)
        assert torch.equal(result[0], expected[0])
    with pytest.raises(RuntimeError, match="Requires manual passing group_type, current is None."):
        torch_npu.npu_grouped_matmul([x], [weight], group_list=torch.tensor([2, 6]), split_item=2)
    for name in ("offset", "activation_input"):
        with pytest.raises(
            NotImplementedError, match=f"{name} is for modes that anynpu does not implement, got a list"
        ):
            torch_npu.npu_grouped_matmul(
                x, weight, group_list=[2, 6], split_item=2, group_type=0, **{name: [torch.zeros(8)]}
            )
    with pytest.raises(NotImplementedError, match="act_type is for modes that anynpu does not implement, got 5"):
        torch_npu.npu_grouped_matmul(
            [x], [weight], group_list=torch.tensor([2, 6]), split_item=2, group_type=0, act_type=5
        )


@pytest.mark.parametrize("groups", [None, 1, 4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_grouped_matmul_of_int4_rows(groups, dtype):
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randint(-8, 8, s, dtype=torch.int32, generator=generator) for s in ((7, 64), (3, 64, 24)))
    scale = torch.rand((3, 24) if groups is None else (3, groups, 24), generator=generator) + 0.5
    rows, counts = torch.rand(7, generator=generator) + 0.5, [3, 0, 4]
    packed = [torch_npu.npu_convert_weight_to_int4pack(t.flatten(0, -2).npu()) for t in (x, weight)]
    options = {"group_list_type": 1, "group_type": 0, "split_item": 2, "output_dtype": dtype}

    def product(x, weight, scale, rows, counts):
        return torch_npu.npu_grouped_matmul(
            [x], [weight], scale=[scale], per_token_scale=[rows], group_list=counts, **options
        )[0]

    args = packed[0], packed[1].view(3, 64, 3), anynpu.pack_scale(scale), rows.npu(), torch.tensor(counts).npu()
    result = product(*args)
    spread = scale.view(3, -1, 1, 24).expand(3, -1, 64 // (groups or 1), 24).reshape(3, 64, 24).double()
    factors = weight.double() * spread
    parts = x.double().split(counts)
    expected = torch.cat([part @ matrix for part, matrix in zip(parts, factors, strict=True)]) * rows[:, None].double()
    largest = 16 * 8 * spread.sum(1).amax() * rows.max()  # of the sums that the bias takes away, in float32
    error = torch.finfo(dtype).eps / 2 * expected.abs() + 2.0**-24 * 16 * largest
    assert result.dtype == dtype and ((result.double() - expected).abs() <= error).all()
    torch.compiler.reset()
    assert torch.equal(torch.compile(product, backend="aot_eager", fullgraph=True)(*args), result)
    with pytest.raises(NotImplementedError, match="bias is for modes that anynpu does not implement"):
        torch_npu.npu_grouped_matmul([args[0]], [args[1]], scale=[args[2]], bias=[rows], group_list=args[4], **options)


def test_scales_of_channels_of_int4_weights_need_no_axis_of_groups():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-8, 8, (2, 64, 16), dtype=torch.int32, generator=generator)
    packed = torch_npu.npu_convert_weight_to_int4pack(weight.flatten(0, 1).npu()).view(2, 64, 2)
    scale = anynpu.pack_scale(torch.rand(2, 16, generator=generator) + 0.5)
    options = dict(
        bias=[reals(2, 16)], per_token_scale=[reals(5).abs()], group_list=torch.tensor([2, 5]).npu(), group_type=0,
        split_item=2, output_dtype=torch.bfloat16,
    )  # fmt: skip
    results = (
        torch_npu.npu_grouped_matmul([codes(5, 64)], [packed], scale=[each], **options)[0]
        for each in (scale, scale.unsqueeze(1))
    )
    assert torch.equal(*results)


def test_grouped_matmul_in_a_graph():
    def function(x, weight, group_list):
        return torch_npu.npu_grouped_matmul([x], [weight], group_list=group_list, split_item=2, group_type=0)[0]

    arguments = torch.ones(5, 8, dtype=torch.int8), torch.ones(2, 8, 3, dtype=torch.int8), torch.tensor([2, 4])
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    assert torch.equal(compiled(*arguments), function(*arguments))


def groups_of_rows(per_token):
    x, weight = codes(9, 32), [codes(32, 16, seed=seed) for seed in (1, 2, 3)]
    options = {"scale": [torch.full((16,), 0.01).npu() for _ in weight], "output_dtype": torch.float16}
    if per_token:
        options["per_token_scale"] = [torch.rand(9, generator=torch.Generator().manual_seed(4)).npu() + 0.5]
    return x, weight, options


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("split", [{}, {"split_item": 0}, {"split_item": 1}], ids=repr)
def test_one_x_and_many_results(per_token, split):
    x, weight, options = groups_of_rows(per_token)
    results = torch_npu.npu_grouped_matmul([x], weight, group_list=[2, 5, 8], **split, **options)
    assert [tuple(result.shape) for result in results] == [(2, 16), (3, 16), (3, 16)]
    whole = torch_npu.npu_grouped_matmul([x], weight, group_list=[2, 5, 8], split_item=3, **options)[0]
    assert torch.equal(torch.cat(results), whole[:8])
    exact = x[2:5].double() @ weight[1].double() * 0.01
    exact = exact * options["per_token_scale"][0][2:5, None].double() if per_token else exact
    torch.testing.assert_close(results[1].double(), exact, rtol=2e-3, atol=1e-4)


def test_groups_that_do_not_fit_one_x():
    x, weight, options = groups_of_rows(False)
    with pytest.raises(ValueError, match=r"length of weight equals .* x \[1\], weight \[3\], group_list \[2\]"):
        torch_npu.npu_grouped_matmul([x], weight, group_list=[2, 9], **options)
    with pytest.raises(ValueError, match="neither x nor weight could be empty"):
        torch_npu.npu_grouped_matmul([x], [], group_list=[], **options)
    for ends in ([5, 2, 9], [2, 5, 10], [-1, 2, 3]):
        with pytest.raises(ValueError, match="group_list must be running sums of at most 9, the rows of x, got"):
            torch_npu.npu_grouped_matmul([x], weight, group_list=ends, **options)


def test_rows_that_are_quantised_first():
    x, weight, scale = halves(7, 32), codes(3, 16, 32), reals(3, 16).abs() / 64
    ends = torch.tensor([2, 2, 6]).npu()
    result = torch_npu.npu_quant_grouped_matmul_dequant(x, weight, scale, ends)
    rounded, steps = (part[:6].double() for part in torch_npu.npu_dynamic_quant(x))
    experts = torch.tensor([0, 0, 2, 2, 2, 2])
    sums = torch.einsum("tk,tnk->tn", rounded, weight[experts].double())
    real = sums * scale[experts].double() * steps.unsqueeze(1)
    error = real.abs() * (2.0**-11 + 4 * 2.0**-24) + 2.0**-25  # the rounding to float16 after three to float32
    assert result.dtype == torch.float16
    assert ((result[:6].double() - real).abs() <= error).all()
    assert not result[6].any()


@pytest.mark.parametrize(
    "changed, error, sentence",
    [
        ({"quant_mode": "pertensor"}, NotImplementedError, "quant_mode is for modes that anynpu does not implement"),
        ({"x": torch.zeros(7, 32)}, TypeError, "x must be float16, got float32"),
        ({"weight_scale": torch.ones(3, 32)}, ValueError, r"weight_scale must have shape \(3, 16\), got \(3, 32\)"),
        ({"group_list": torch.tensor([2, 2, 9])}, ValueError, "group_list"),
    ],
)
def test_what_is_refused_of_rows_that_are_quantised_first(changed, error, sentence):
    given = {"x": halves(7, 32), "quantized_weight": codes(3, 16, 32), "weight_scale": torch.ones(3, 16)}
    given["group_list"] = torch.tensor([2, 2, 6])
    with pytest.raises(error, match=sentence):
        torch_npu.npu_quant_grouped_matmul_dequant(**(given | changed))
