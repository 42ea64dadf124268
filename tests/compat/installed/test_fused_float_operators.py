# SPDX-License-Identifier: Apache-2.0
"""Float functions that join steps of a layer, against torch's operators in float64."""

from __future__ import annotations

import pytest
import torch
import torch_npu
from npu_tensors import integers, reals

UNIT = 2.0**-24  # of float32 roundings
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])


def assert_near(result, expected, error, dtype):
    """``error`` of the float32 arithmetic and one rounding to ``dtype``."""
    assert result.dtype == dtype and result.shape == expected.shape
    rounding = torch.finfo(dtype).eps / 2 * (expected.abs() + error) + torch.finfo(dtype).smallest_normal
    assert ((result.double() - expected).abs() <= error + rounding).all()


def halves_of(x, dim, interleaved):
    """What is activated and what it is multiplied with, of the axis and those behind it taken together."""
    flat = x.double().flatten(dim).flatten(0, dim - 1)
    return (flat[:, ::2], flat[:, 1::2]) if interleaved else flat.chunk(2, -1)


@DTYPES
@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("dim", [-1, 1])
def test_clipped_swiglu(dtype, interleaved, dim):
    x = 8 * reals(5, 6, 4, dtype=dtype)
    options = {"alpha": 1.5, "limit": 6.0, "bias": 0.5}
    a, b = halves_of(x, dim % 3, interleaved)
    a, b = a.clamp(max=6), b.clamp(-6, 6)
    shape = [5, 6, 4]
    shape[dim] //= 2
    expected = (a / (1 + (-1.5 * a).exp()) * (b + 0.5)).view(shape)
    # sigmoid's argument is at most 9 or very negative, where the product is next to 0; six roundings beside it.
    error = 20 * UNIT * (expected.abs() + UNIT)
    result = torch_npu.npu_clipped_swiglu(x, dim=dim, interleaved=interleaved, **options)
    big = (-1.5 * a).view(shape) < 20
    assert_near(result[big], expected[big], error[big], dtype)
    assert (result[~big].abs() < 1e-6).all()
    rows = torch.tensor([1, 0, 2]).npu()
    kept = torch_npu.npu_clipped_swiglu(x, group_index=rows, dim=dim, interleaved=interleaved, **options)
    flat, whole = (y.flatten(0, dim % 3 - 1) for y in (kept, result))
    assert torch.equal(flat[:3], whole[:3])
    assert not flat[3:].any()


def test_defaults_of_clipped_swiglu_are_those_of_gpt_oss():
    x = reals(3, 8)
    a, b = x[:, ::2].clamp(max=7), x[:, 1::2].clamp(-7, 7)
    torch.testing.assert_close(torch_npu.npu_clipped_swiglu(x), a * torch.sigmoid(1.702 * a) * (b + 1))


@DTYPES
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_mul(dtype, approximate):
    x = reals(5, 3, 16, dtype=dtype)
    first, second = x.double().chunk(2, -1)
    expected = torch.nn.functional.gelu(first, approximate=approximate) * second
    # 1 + erf loses what cancels in it: a few roundings of 1, times the inputs.
    error = 8 * UNIT * (1 + first.abs()) * second.abs()
    assert_near(torch_npu.npu_gelu_mul(x, approximate=approximate), expected, error, dtype)


@DTYPES
@pytest.mark.parametrize("swish_scale", [1.0, 0.5])
def test_group_norm_and_swish(dtype, swish_scale):
    x, weight, bias = (reals(*shape, dtype=dtype, seed=i) for i, shape in enumerate([(3, 6, 4, 5), (6,), (6,)]))
    normal = torch.nn.functional.group_norm(x.double(), 2, weight.double(), bias.double(), 1e-3)
    results = torch_npu.npu_group_norm_swish(x, 2, weight, bias, eps=1e-3, swish_scale=swish_scale)
    grouped = x.double().view(3, 2, -1)
    mean, rstd = grouped.mean(-1), (grouped.var(-1, correction=0) + 1e-3).rsqrt()
    # Sums of 60 values and ten operations; the mean, next to 0, has the roundings of values of up to 5.
    error = 80 * UNIT
    assert_near(results[0], normal * torch.sigmoid(swish_scale * normal), error * (5 + normal.abs()), dtype)
    assert_near(results[1], mean, torch.full_like(mean, 5 * error), dtype)
    assert_near(results[2], rstd, error * rstd, dtype)
    if swish_scale == 1:
        for result, other in zip(torch_npu.npu_group_norm_silu(x, weight, bias, 2, 1e-3), results, strict=True):
            assert torch.equal(result, other)


def test_add_rms_norm_cast():
    x1, x2, gamma = (reals(*shape, dtype=torch.bfloat16, seed=i) for i, shape in enumerate([(4, 32), (4, 32), (32,)]))
    wide, *results = torch_npu.npu_add_rms_norm_cast(x1, x2, gamma, 1e-5)
    for result, other in zip(results, torch_npu.npu_add_rms_norm(x1, x2, gamma, 1e-5), strict=True):
        assert torch.equal(result, other)
    assert wide.dtype == torch.float32
    assert torch.equal(wide, results[0].float())


@DTYPES
def test_scaled_masked_softmax(dtype):
    x, mask = reals(2, 3, 8, 8, dtype=dtype), integers(0, 2, 2, 1, 8, 8).bool()
    mask[..., 0] = False
    triangle = torch.ones(8, 8).bool().triu(1)
    for hidden, flag in ((mask, False), (triangle, True)):
        expected = (0.25 * x.double()).masked_fill(hidden, -torch.inf).softmax(-1)
        result = torch_npu.npu_scaled_masked_softmax(x, mask, 0.25, flag)
        assert_near(result, expected, 16 * UNIT * expected, dtype)  # exponentials, a sum of 8, a division


def test_gradients():
    x = reals(2, 3, 8, 8).requires_grad_()
    mask = torch.zeros(8, 8).bool().npu()
    torch_npu.npu_scaled_masked_softmax(x, mask, 0.5).square().sum().backward()
    other = x.detach().clone().requires_grad_()
    (0.5 * other).softmax(-1).square().sum().backward()
    torch.testing.assert_close(x.grad, other.grad)


@pytest.mark.parametrize(
    "call, error, sentence",
    [
        (lambda x: torch_npu.npu_clipped_swiglu(x[:, :7]), ValueError, r"dim must be an axis of even size of x"),
        (lambda x: torch_npu.npu_clipped_swiglu(x, dim=2), ValueError, "got 2"),
        (lambda x: torch_npu.npu_gelu_mul(x, approximate="erf"), ValueError, "approximate must be 'none' or 'tanh'"),
        (lambda x: torch_npu.npu_gelu_mul(x.double()), TypeError, "input must be float32"),
        (lambda x: torch_npu.npu_group_norm_silu(x, x[0], x[0], 3), ValueError, "a multiple of the 3 groups"),
        (lambda x: torch_npu.npu_group_norm_silu(x, x[0, :4], x[0], 2), ValueError, r"weight must have shape \(8,\)"),
        (lambda x: torch_npu.npu_scaled_masked_softmax(x, x), TypeError, "mask must be bool, got float32"),
        (
            lambda x: torch_npu.npu_scaled_masked_softmax(x, x[:, :5] > 0),
            ValueError,
            "mask must broadcast to the shape",
        ),
    ],
)
def test_refusals(call, error, sentence):
    with pytest.raises(error, match=sentence):
        call(reals(4, 8))
