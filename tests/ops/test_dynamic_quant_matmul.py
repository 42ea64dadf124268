# SPDX-License-Identifier: Apache-2.0
"""The linear layers' one native call gives the bits of dynamic_quant and quant_matmul, and shows as those."""

from __future__ import annotations

import pytest
import torch

import anynpu
from anynpu.ops.quant_matmul.dynamic import _call, _operators, dynamic_quant_matmul

K, N = 96, 40
SHAPES = [(1, K), (1, 1, K), (5, K), (2, 3, K), (K,), (0, K), (2, 0, K), (*[1] * 7, K), (*[1] * 8, K), (700, K)]


def random(seed):
    return torch.Generator().manual_seed(seed)


def weight(kind):
    if kind == "int8":
        return torch.randint(-128, 128, (N, K), dtype=torch.int8, generator=random(0))
    words = anynpu.int4_pack(torch.randint(-8, 8, (K, N), dtype=torch.int32, generator=random(0)))
    return anynpu.weight_quant_prepack(words) if kind == "prepacked" else words


def arguments(shape, dtype, kind, group_size=0, bias=True):
    x = torch.randn(shape, generator=random(1)).to(dtype)
    scale = torch.rand((-(-K // group_size), N) if group_size else N, generator=random(2))
    return x, weight(kind), scale, torch.randn(N, generator=random(3)) if bias else None, N, group_size


def in_two_calls(x, weight, scale, bias, n, group_size):
    return _operators(x, weight, scale, bias, group_size, n)


def assert_same(result, expected):
    assert (result.shape, result.dtype, result.stride()) == (expected.shape, expected.dtype, expected.stride())
    assert torch.equal(result, expected)


@pytest.mark.parametrize("kind, group_size", [("int8", 0), ("words", 0), ("words", 32), ("prepacked", 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_bits_are_those_of_the_operators(dtype, kind, group_size, isa, each_thread_count):
    for shape in SHAPES:
        args = arguments(shape, dtype, kind, group_size, bias=len(shape) % 2 == 0)
        expected = in_two_calls(*args)
        dynamic_quant_matmul(*args)
        for result in each_thread_count(lambda args=args: dynamic_quant_matmul(*args)):
            assert_same(result, expected)


def test_rows_of_any_strides():
    x, *rest = arguments((4, 3, 2 * K), torch.float32, "int8")
    for view in (x[..., ::2], x[..., :K], x[..., :K].transpose(0, 1)):
        expected = in_two_calls(view, *rest)
        for _ in range(2):
            assert_same(dynamic_quant_matmul(view, *rest), expected)


def test_a_repeated_call_of_few_rows_is_one_native_call(monkeypatch):
    args = arguments((2, K), torch.float32, "int8")
    expected = dynamic_quant_matmul(*args)
    monkeypatch.setattr("anynpu.ops.quant_matmul.dynamic.quant_matmul", None)
    assert_same(dynamic_quant_matmul(*args), expected)


def test_the_profiler_sees_the_operators():
    args = arguments((2, K), torch.float32, "int8")
    dynamic_quant_matmul(*args), dynamic_quant_matmul(*args)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        dynamic_quant_matmul(*args)
    assert {"anynpu::dynamic_quant", "anynpu::quant_matmul"} <= {event.key for event in profile.key_averages()}


def test_graphs_hold_the_operators():
    layer = anynpu.quantize_(torch.nn.Sequential(torch.nn.Linear(K, N)), anynpu.W8A8())
    x = torch.randn(2, K, generator=random(4))
    expected = layer(x), layer(x)
    code = torch.export.export(layer, (x,)).graph_module.code
    assert "anynpu.dynamic_quant" in code and "anynpu.quant_matmul" in code
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), expected[0]) and torch.equal(*expected)


def test_refusals_of_repeated_calls_are_those_of_the_operators():
    x, codes, scale, bias, n, _ = arguments((2, K), torch.float32, "int8")
    for _ in range(2):
        with pytest.raises(TypeError, match="dynamic_quant: x must be float16 or bfloat16 or float32, got int32"):
            dynamic_quant_matmul(x.int(), codes, scale, bias, n)
        with pytest.raises(ValueError, match="quant_matmul: k dim of x1 and x2 need be same"):
            dynamic_quant_matmul(x[:, 1:], codes, scale, bias, n)
        with pytest.raises(ValueError, match=r"quant_matmul: scale must have shape \(1,\) or \(N,\) = \(40,\)"):
            dynamic_quant_matmul(x, codes, scale[1:], bias, n)


@pytest.mark.parametrize("y", [(3, N), (2, N, 1), (N,)])
def test_the_native_call_refuses_other_axes_of_y(y):
    x, codes, scale, bias, _, _ = arguments((2, K), torch.float32, "int8")
    with pytest.raises(ValueError, match=r"dynamic_quant_matmul: x must be \[..., M, K\] and y \[..., M, N\]"):
        _call(x, codes.t(), scale, bias, torch.empty(y), scalars=(0,))


def test_the_native_call_refuses_a_y_that_is_not_contiguous():
    x, codes, scale, bias, _, _ = arguments((2, K), torch.float32, "int8")
    y = torch.zeros(N, 2).t()
    with pytest.raises(ValueError, match="dynamic_quant_matmul: x must be"):
        _call(x, codes.t(), scale, bias, y, scalars=(0,))
    assert not y.any()
