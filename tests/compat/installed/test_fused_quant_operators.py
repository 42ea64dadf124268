# SPDX-License-Identifier: Apache-2.0
"""The fused functions of torch_npu, and its quantised modules, against their formulas in float64."""

from __future__ import annotations

import functools

import pytest
import torch
import torch_npu
from npu_tensors import integers, reals
from torch_npu.contrib.module import LinearA8W8Quant, LinearQuant, LinearWeightQuant

import anynpu

UNIT = 2.0**-24  # of float32 roundings


def positive(*shape, dtype=torch.float32, seed=0):
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) + 0.5).to(dtype).npu()


def assert_rounded(codes, exact, error):
    """Each code is the exact value rounded; within ``error`` of a half either neighbour."""
    assert codes.dtype == torch.int8 and codes.shape == exact.shape
    assert ((codes.double() - exact).abs() <= 0.5 + error).all()


COUNTS = (3, 0, 5)


def experts():
    x, weight = integers(-128, 128, 10, 32), integers(-128, 128, 3, 32, 64, seed=1)
    return x, weight, positive(3, 64, seed=2) * 1e-3, positive(10, seed=3)


def assert_swiglu_quant(y, scale, x, weight, weight_scale, x_scale, more=0.0):
    """Some ten float32 roundings before the row's maximum, which the division by it doubles, and ``more`` error of
    the sigmoid's argument and its factors."""
    start = 0
    for expert, count in enumerate(COUNTS):
        rows = slice(start, start + count)
        start += count
        if not count:
            continue
        product = x[rows].double() @ weight[expert].double()
        left, right = (product * weight_scale[expert].double() * x_scale[rows, None].double()).chunk(2, -1)
        exact = left * torch.sigmoid(left) * right
        greatest = exact.abs().amax(-1, keepdim=True)
        error = (32 * UNIT + more) * (1 + left.abs())
        torch.testing.assert_close(scale[rows, None].double(), greatest / 127, rtol=float(error.max()), atol=0)
        assert_rounded(y[rows], exact * 127 / greatest, 127 * float(error.max()))
    assert not y[start:].any() and not scale[start:].any()


@pytest.mark.parametrize("form", ["three axes", "five axes", "float16 scales"])
def test_grouped_matmul_swiglu_quant(form):
    x, weight, weight_scale, x_scale = experts()
    group_list = torch.tensor(COUNTS, device="npu").cumsum(0)
    given = weight
    if form == "five axes":
        given = weight.view(3, 2, 16, 2, 32).permute(0, 3, 1, 2, 4).contiguous()
    if form == "float16 scales":
        weight_scale = weight_scale.half()
    y, scale, offset = torch_npu.npu_grouped_matmul_swiglu_quant(x, given, group_list, weight_scale, x_scale)
    assert (y.shape, scale.shape, offset.shape) == ((10, 32), (10,), ())
    assert_swiglu_quant(y, scale, x, weight, weight_scale, x_scale)


def test_grouped_matmul_swiglu_quant_v2():
    x, weight, weight_scale, x_scale = experts()
    counts = torch.tensor(COUNTS, device="npu")
    function = torch_npu.npu_grouped_matmul_swiglu_quant_v2
    by_count = function(x, [weight], [weight_scale], x_scale, counts, group_list_type=1)
    assert_swiglu_quant(*by_count, x, weight, weight_scale, x_scale)
    cumulative = function(x, weight, weight_scale, x_scale, counts.cumsum(0))
    assert all(map(torch.equal, by_count, cumulative))


@pytest.mark.parametrize("groups", [1, 2])
def test_int4_weights_of_grouped_matmul_swiglu_quant(groups):
    """The bias is that of the document, 8 * sum of weight * scale, so that the product is that of the weights.

    What cancels is at most 8 * 32 * 8 * 0.015 = 31; with x_scale and ten float32 roundings, 2^-15 of error.
    """
    x, _, _, x_scale = experts()
    weight = integers(-8, 8, 3, 32, 64, seed=4, dtype=torch.int32)
    factors = positive(3, groups, 64, seed=5) * 1e-2
    scaled = weight.view(3, groups, -1, 64) * factors[:, :, None]
    bias = 8 * scaled.sum((1, 2))
    packed, words = torch_npu.npu_convert_weight_to_int4pack(weight), anynpu.pack_scale(factors)
    counts = torch.tensor(COUNTS, device="npu")
    wide = words.squeeze(1) if groups == 1 else words
    y, scale, _ = torch_npu.npu_grouped_matmul_swiglu_quant(x, packed, counts.cumsum(0), wide, x_scale, bias=bias)
    assert_swiglu_quant(y, scale, x, scaled.flatten(1, 2), torch.ones(3, 64), x_scale, 2**-15)
    five = packed.view(3, 2, 16, 1, 8).permute(0, 3, 1, 2, 4).contiguous()
    second = functools.partial(
        torch_npu.npu_grouped_matmul_swiglu_quant_v2, x, [five], [wide], x_scale, counts, weight_assist_matrix=[bias],
        dequant_mode=groups - 1, group_list_type=1,
    )  # fmt: skip
    torch.compiler.reset()
    captured = torch.compile(lambda: second(dequant_dtype=torch.float32), backend="aot_eager", fullgraph=True)
    for results in (second(), second(dequant_dtype=6), second(dequant_dtype=torch.float32), captured()):
        assert torch.equal(results[0], y) and torch.equal(results[1], scale)


def test_refusals_of_grouped_matmul_swiglu_quant():
    x, weight, weight_scale, x_scale = experts()
    group_list = torch.tensor(COUNTS, device="npu").cumsum(0)
    packed = torch.zeros(3, 32, 8, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"int4 weights \(A8W4\) need their bias"):
        torch_npu.npu_grouped_matmul_swiglu_quant(x, packed, group_list, weight_scale, x_scale)
    with pytest.raises(ValueError, match="a bias is for int4 weights"):
        torch_npu.npu_grouped_matmul_swiglu_quant(x, weight, group_list, weight_scale, x_scale, bias=x_scale)
    with pytest.raises(ValueError, match=r"group_list\[2\] must be in \[10, 10\] .*, got 15"):
        torch_npu.npu_grouped_matmul_swiglu_quant(x, weight, group_list + 7, weight_scale, x_scale)
    v2 = torch_npu.npu_grouped_matmul_swiglu_quant_v2
    for name, value in {
        "dequant_mode": 1,
        "quant_mode": 2,
        "quant_dtype": torch.float16,
        "smooth_scale": x_scale,
    }.items():
        with pytest.raises(NotImplementedError, match=f"{name} is for modes"):
            v2(x, [weight], [weight_scale], x_scale, group_list, **{name: value})
    with pytest.raises(ValueError, match="lists of one tensor, got 2, 1"):
        v2(x, [weight, weight], [weight_scale], x_scale, group_list)
    with pytest.raises(ValueError, match="group_list_type must be 0 or 1, got 2"):
        v2(x, [weight], [weight_scale], x_scale, group_list, group_list_type=2)


@pytest.mark.parametrize("output_dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("bias_dtype", [None, torch.int32, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activated", [False, True])
def test_dequant_bias(output_dtype, bias_dtype, activated):
    x, weight_scale = integers(-(10**6), 10**6, 5, 7, dtype=torch.int32), positive(7, seed=1) * 1e-3
    activation_scale = positive(5, seed=2) if activated else None
    bias = None if bias_dtype is None else (reals(7, seed=3) * 50).to(bias_dtype)
    y = torch_npu.npu_dequant_bias(x, weight_scale, activation_scale, bias, output_dtype=output_dtype)
    exact = x.double() + (bias if bias_dtype == torch.int32 else 0)
    exact = exact * weight_scale.double() * (activation_scale.double()[:, None] if activated else 1)
    terms = exact.abs()
    if bias_dtype in (torch.float32, torch.bfloat16):
        exact, terms = exact + bias.double(), terms + bias.double().abs()
    assert y.dtype == (output_dtype or torch.float16)
    assert ((y.double() - exact).abs() <= 4 * UNIT * terms + torch.finfo(y.dtype).eps / 2 * exact.abs() * 1.001).all()


def test_rows_without_values_are_refused():
    nothing, halves = torch.empty(2, 0).npu(), torch.empty(2, 0, 8, dtype=torch.float16).npu()
    for call, text in (
        (
            lambda: torch_npu.npu_dynamic_quant_asymmetric(nothing),
            r"last axis of x must not be empty, got shape \(2, 0\)",
        ),
        (lambda: torch_npu.npu_add_rms_norm_dynamic_quant(nothing, nothing, nothing[0]), "gamma must not be empty"),
        (
            lambda: torch_npu.npu_kronecker_quant(halves, halves[0, :, :0], halves.new_empty(8, 8)),
            r"M and N of x must be at least 1, got shape \(2, 0, 8\)",
        ),
        (
            lambda: torch_npu.npu_dynamic_quant_asymmetric(
                torch.ones(2, 8), smooth_scales=torch.ones(0, 8), group_index=torch.empty(0, dtype=torch.int32)
            ),
            "group_index must not be empty",
        ),
    ):
        with pytest.raises(ValueError, match=text):
            call()


def test_refusals_of_dequant_bias():
    x, scale = integers(-9, 9, 5, 7, dtype=torch.int32), positive(7)
    for arguments, text in (
        ((x.float(), scale), "x must be int32, got float32"),
        ((x, scale[:6]), r"weight_scale must have shape \(7,\), got \(6,\)"),
        ((x, scale, scale), r"activation_scale must have shape \(5,\), got \(7,\)"),
        ((x[0], scale), "x must have 2 axes, got 1"),
    ):
        with pytest.raises(RuntimeError, match=text):
            torch_npu.npu_dequant_bias(*arguments)
    with pytest.raises(ValueError, match="Only supported output_dtype is float16 and bfloat16"):
        torch_npu.npu_dequant_bias(x, scale, output_dtype=torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("div_mode", [True, False])
def test_add_rms_norm_quant(dtype, div_mode):
    x1, x2, gamma, beta = (
        reals(*shape, dtype=dtype, seed=i) for i, shape in enumerate([(4, 64), (4, 64), (64,), (64,)])
    )
    scales, zero_points = (
        positive(64, seed=4) * (0.05 if div_mode else 20),
        integers(-9, 9, 64, dtype=torch.int32, seed=5),
    )
    results = torch_npu.npu_add_rms_norm_quant(
        x1, x2, gamma, scales, zero_points, beta, scales.to(torch.bfloat16), epsilon=1e-5, div_mode=div_mode
    )
    x = (x1.double() + x2.double()).to(dtype)
    assert torch.equal(results[2], x)
    wide = x.double()
    normal = wide * (wide.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * gamma.double() + beta.double()
    for codes, factor, zero in (
        (results[0], scales.double(), zero_points),
        (results[1], scales.bfloat16().double(), 0),
    ):
        exact = (normal / factor if div_mode else normal * factor) + zero
        assert_rounded(codes, exact.clamp(-128, 127), 50 * UNIT * 200)
    plain = torch_npu.npu_add_rms_norm_quant(x1, x2, gamma, scales, div_mode=div_mode)
    assert not plain[1].any() and plain[0].any()


def test_refusals_of_add_rms_norm_quant():
    x, gamma, scales = reals(4, 64, dtype=torch.float16), reals(64, dtype=torch.float16), positive(64)
    with pytest.raises(ValueError, match="axis should be -1, but got 0"):
        torch_npu.npu_add_rms_norm_quant(x, x, gamma, scales, axis=0)
    with pytest.raises(ValueError, match=r"scales1 must have the shape of gamma, \(64,\), got \(3,\)"):
        torch_npu.npu_add_rms_norm_quant(x, x, gamma, scales[:3])
    with pytest.raises(NotImplementedError, match="dst_type must be int8, got torch.quint4x2"):
        torch_npu.npu_add_rms_norm_quant(x, x, gamma, scales, dst_type=torch.quint4x2)


def unpacked(words):
    """The int4 values of int32 words, low ones first."""
    nibbles = torch.stack([(words.long() >> shift) & 15 for shift in range(0, 32, 4)], -1).flatten(-2)
    return (nibbles - 16 * (nibbles > 7)).to(torch.int8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dst_type", [torch.int8, torch.quint4x2])
@pytest.mark.parametrize("smooth", [None, "all", "groups"])
def test_dynamic_quant_asymmetric(dtype, dst_type, smooth):
    x = reals(2, 3, 16, dtype=dtype) + 1
    x[1, 2] = 4
    options, factors = {}, torch.ones(6, 16, dtype=torch.float64)
    if smooth == "all":
        options = {"smooth_scales": positive(16, dtype=dtype, seed=1)}
        factors = factors * options["smooth_scales"].double()
    if smooth == "groups":
        ends = torch.tensor([1, 1, 6], dtype=torch.int32, device="npu")
        options = {"smooth_scales": positive(3, 16, dtype=dtype, seed=1), "group_index": ends}
        factors = options["smooth_scales"].double()[[0, 2, 2, 2, 2, 2]]
    y, scale, offset = torch_npu.npu_dynamic_quant_asymmetric(x, dst_type=dst_type, **options)
    assert scale.shape == offset.shape == (2, 3) and scale.dtype == offset.dtype == torch.float32
    codes = y if dst_type == torch.int8 else unpacked(y)
    low, high = (-128, 127) if dst_type == torch.int8 else (-8, 7)
    exact = x.double() * factors.view(2, 3, 16)
    greatest, least = exact.amax(-1), exact.amin(-1)
    step = (greatest - least) / (high - low)
    varied = step > 0
    torch.testing.assert_close(scale.double(), step, rtol=64 * UNIT, atol=0)
    shift = torch.where(varied, high - greatest / step, 0)
    torch.testing.assert_close(offset.double(), shift, rtol=0, atol=1e-4)
    quantised = exact / step[..., None] + shift[..., None]
    assert_rounded(codes[varied], quantised[varied].clamp(low, high), 1e-4)
    assert not codes[~varied].any() and (smooth is not None or not varied[1, 2])


def test_refusals_of_dynamic_quant_asymmetric():
    x, smooth = reals(4, 12, dtype=torch.float16), positive(2, 12, dtype=torch.float16)
    function = torch_npu.npu_dynamic_quant_asymmetric
    with pytest.raises(
        NotImplementedError, match="quant_mode is for modes that anynpu does not implement, got perchannel"
    ):
        function(x, quant_mode="perchannel")
    with pytest.raises(ValueError, match="Input shape last dim must be divded by 8 when int4 quantization, got 12"):
        function(x, dst_type=torch.quint4x2)
    with pytest.raises(RuntimeError, match="group_index must be ends of groups in ascending order, the last 4"):
        function(x, smooth_scales=smooth, group_index=torch.tensor([1, 3], dtype=torch.int32))
    with pytest.raises(ValueError, match="group_index needs smooth_scales"):
        function(x, group_index=torch.tensor([4], dtype=torch.int32))


def test_fused_functions_are_captured():
    x, weight, weight_scale, x_scale = experts()
    group_list = torch.tensor(COUNTS, device="npu").cumsum(0)

    def layer(x, x_scale):
        y, scale, _ = torch_npu.npu_grouped_matmul_swiglu_quant(x, weight, group_list, weight_scale, x_scale)
        return torch_npu.npu_dequant_bias(y.int(), weight_scale[0, :32], scale, None), scale

    compiled = torch.compile(layer, backend="npu", fullgraph=True)
    torch.testing.assert_close(compiled(x, x_scale), layer(x, x_scale))


@pytest.mark.parametrize("module", [LinearQuant, LinearA8W8Quant])
def test_linear_quant(module):
    x, weight = integers(-128, 128, 4, 32), integers(-128, 128, 16, 32, seed=1)
    layer = module(32, 16, bias=False, pertoken_scale=True, output_dtype=torch.bfloat16).npu()
    assert layer.bias is None and layer.offset is None and not layer.weight.requires_grad
    layer.weight.data, layer.scale.data, layer.pertoken_scale.data = weight, positive(16), positive(4, seed=2)
    exact = x.double() @ weight.double().t() * layer.scale.double() * layer.pertoken_scale.double()[:, None]
    torch.testing.assert_close(layer(x).double(), exact, rtol=2.0**-8, atol=0)
    with pytest.raises(
        ValueError, match=rf"{module.__name__}: input and weight should be both .* now input is torch.float32"
    ):
        layer(x.float())


def test_linear_quant_of_int4():
    values = integers(-8, 8, 4, 16, dtype=torch.int32), integers(-8, 8, 24, 16, dtype=torch.int32, seed=1)
    layer = LinearQuant(16, 24, output_dtype=torch.float16).npu()
    layer.weight.data = torch_npu.npu_convert_weight_to_int4pack(values[1])
    layer.scale.data = torch.full((24,), 0.5).npu()
    layer.bias.data = integers(-9, 9, 24, dtype=torch.int32, seed=2)
    y = layer(torch_npu.npu_convert_weight_to_int4pack(values[0]))
    assert torch.equal(y.double(), (values[0].double() @ values[1].double().t() + layer.bias) / 2)


def test_linear_weight_quant():
    x, weight = reals(4, 64, dtype=torch.float16), integers(-8, 8, 16, 64, dtype=torch.int32)
    layer = LinearWeightQuant(64, 16, False, antiquant_offset=True, antiquant_group_size=32).npu()
    layer.weight.data = torch_npu.npu_convert_weight_to_int4pack(weight)
    layer.antiquant_scale.data = positive(16, 2, dtype=torch.float16, seed=1)
    layer.antiquant_offset.data = reals(16, 2, dtype=torch.float16, seed=2)
    scale, offset = (
        group.double().repeat_interleave(32, 1) for group in (layer.antiquant_scale, layer.antiquant_offset)
    )
    exact = x.double() @ ((weight.double() + offset) * scale).t()
    assert ((layer(x).double() - exact).abs() <= 2e-2 * exact.abs().amax()).all()
    assert list(layer.state_dict()) == ["weight", "antiquant_scale", "antiquant_offset"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("clip_ratio", [None, 0.5])
def test_kronecker_quant(dtype, clip_ratio):
    generator = torch.Generator().manual_seed(0)
    # small integers: the products are exact in float32
    x, left, right = (
        torch.randint(-3, 4, shape, generator=generator).to(dtype).npu() for shape in ((5, 6, 16), (6, 6), (16, 16))
    )
    x[2] = 0
    codes, scale = torch_npu.npu_kronecker_quant(x, left, right, clip_ratio=clip_ratio, dst_dtype=torch.int32)
    y = torch.einsum("ij,tjk,kl->til", left.double(), x.double(), right.double())
    expected = (y.abs().amax((1, 2)).float() * ((clip_ratio or 1.0) / 7)).float()
    assert codes.shape == (5, 6, 2) and torch.equal(scale, expected)
    unpacked = anynpu.int4_unpack(codes.flatten(0, 1)).view(5, 6, 16)
    steps = y / scale.double()[:, None, None].masked_fill(scale[:, None, None] == 0, 1)
    assert ((unpacked - steps.clamp(-8, 7)).abs() <= 0.5 + 1e-6).all() and not unpacked[2].any()
    assert clip_ratio is None or unpacked.min() == -8 or unpacked.max() == 7


def test_kronecker_quant_refuses():
    x, left, right = torch.ones(2, 4, 8).half(), torch.eye(4).half(), torch.eye(8).half()
    refused = (
        ((x, right, right), {}, r"kronecker_p1 must have shape \(4, 4\), got \(8, 8\)"),
        ((x, left, right), {"clip_ratio": 0.0}, r"clip_ratio must be in \(0, 1\], got 0.0"),
        ((x, left, right), {"dst_dtype": torch.int8}, r"dst_dtype must be int32 \(eight int4\), got torch.int8"),
        ((x[0], left, right), {}, r"x must have shape \(T, M, N\), got \(4, 8\)"),
    )
    for args, options, text in refused:
        with pytest.raises(ValueError, match=text):
            torch_npu.npu_kronecker_quant(*args, **options)
