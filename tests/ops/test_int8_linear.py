# SPDX-License-Identifier: Apache-2.0
"""The linear layers' one native call gives the bits of the operators one after the other, and shows as those."""

from __future__ import annotations

import inspect

import pytest
import torch

import anynpu
from anynpu.ops.quant_matmul.int8_linear import _call, _operators, int8_linear

K, N = 96, 40
SHAPES = [(1, K), (1, 1, K), (5, K), (2, 3, K), (K,), (0, K), (2, 0, K), (*[1] * 7, K), (*[1] * 8, K), (700, K)]


def random(seed):
    return torch.Generator().manual_seed(seed)


def weight(kind):
    """The weight, and the index of a compressed one."""
    codes = torch.randint(-128, 128, (N, K), dtype=torch.int8, generator=random(0))
    if kind == "int8":
        return codes.t(), None
    if kind == "prepacked int8":
        return anynpu.weight_quant_prepack(codes.t()), None
    if kind == "compressed":
        packed = anynpu.formats.compress_weight(codes)
        return packed.stream, packed.index
    words = anynpu.int4_pack(torch.randint(-8, 8, (K, N), dtype=torch.int32, generator=random(0)))
    return (anynpu.weight_quant_prepack(words) if kind == "prepacked" else words), None


def arguments(shape, dtype, kind, group_size=0, bias=True, inputs="dynamic"):
    stored, index = weight(kind)
    options = {"index": index, "group_size": group_size}
    if inputs != "dynamic":
        options["input_scale"] = torch.tensor([0.03])
    if inputs == "offset":
        options["input_offset"] = torch.tensor([5.0])
    x = torch.randn(shape, generator=random(1)).to(dtype)
    scale = torch.rand((-(-K // group_size), N) if group_size else N, generator=random(2))
    added = torch.randint(-999, 999, (N,), dtype=torch.int32, generator=random(3)) if inputs == "offset" else None
    if inputs != "offset" and bias:
        added = torch.randn(N, generator=random(3))
    return (x, stored, scale, added, N), options


def one_after_the_other(args, options):
    bound = inspect.signature(int8_linear).bind(*args, **options)
    bound.apply_defaults()
    return _operators(**bound.arguments)


def assert_same(result, expected):
    assert (result.shape, result.dtype, result.stride()) == (expected.shape, expected.dtype, expected.stride())
    assert torch.equal(result, expected)


@pytest.mark.parametrize("inputs", ["dynamic", "static", "offset"])
@pytest.mark.parametrize(
    "kind, group_size",
    [("int8", 0), ("prepacked int8", 0), ("compressed", 0), ("words", 0), ("words", 32), ("prepacked", 64)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_bits_are_those_of_the_operators(dtype, kind, group_size, inputs, isa, each_thread_count):
    if inputs == "offset" and group_size:
        pytest.skip("groups take no int32 bias")
    for shape in SHAPES:
        args, options = arguments(shape, dtype, kind, group_size, len(shape) % 2 == 0, inputs)
        expected = one_after_the_other(args, options)
        int8_linear(*args, **options)
        for result in each_thread_count(lambda args=args, options=options: int8_linear(*args, **options)):
            assert_same(result, expected)


def test_rows_of_any_strides():
    (x, *rest), options = arguments((4, 3, 2 * K), torch.float32, "int8")
    for view in (x[..., ::2], x[..., :K], x[..., :K].transpose(0, 1)):
        expected = one_after_the_other((view, *rest), options)
        for _ in range(2):
            assert_same(int8_linear(view, *rest, **options), expected)


@pytest.mark.parametrize("kind, inputs", [("int8", "dynamic"), ("int8", "offset"), ("compressed", "static")])
def test_a_repeated_call_of_few_rows_is_one_native_call(kind, inputs, monkeypatch):
    args, options = arguments((2, K), torch.float32, kind, inputs=inputs)
    expected = int8_linear(*args, **options)
    for name in ("quant_matmul", "compressed_matmul", "quantize", "dynamic_quant"):
        monkeypatch.setattr(f"anynpu.ops.quant_matmul.int8_linear.{name}", None)
    assert_same(int8_linear(*args, **options), expected)


def test_the_profiler_sees_the_operators():
    args, options = arguments((2, K), torch.float32, "int8")
    int8_linear(*args, **options), int8_linear(*args, **options)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        int8_linear(*args, **options)
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
    (x, codes, scale, bias, n), options = arguments((2, K), torch.float32, "int8")
    for _ in range(2):
        with pytest.raises(TypeError, match="dynamic_quant: x must be float16 or bfloat16 or float32, got int32"):
            int8_linear(x.int(), codes, scale, bias, n)
        with pytest.raises(ValueError, match="quant_matmul: k dim of x1 and x2 need be same"):
            int8_linear(x[:, 1:], codes, scale, bias, n)
        with pytest.raises(ValueError, match=r"quant_matmul: scale must have shape \(1,\) or \(N,\) = \(40,\)"):
            int8_linear(x, codes, scale[1:], bias, n)


def test_damage_of_a_compressed_weight_is_found_by_repeated_calls():
    (x, stream, *rest), options = arguments((2, K), torch.float32, "compressed")
    int8_linear(x, stream, *rest, **options)
    stream[stream.numel() // 2] ^= 1
    with pytest.raises(ValueError, match="compressed_matmul: block 0 of the compressed weight .* is damaged"):
        int8_linear(x, stream, *rest, **options)


def native(y=None, **replaced):
    """Makes the native call itself, whose y is not written unless all is well."""
    (x, codes, scale, bias, _), _ = arguments((2, K), torch.float32, "int8")
    y = torch.zeros(2, N) if y is None else y
    members = {"input_scale": None, "input_offset": None, "index": None, "group_size": 0, **replaced}
    group_size = members.pop("group_size")
    try:
        _call(x, codes.t(), scale, bias, *members.values(), y, scalars=(group_size, 0, 0))
    finally:
        assert not y.any()


@pytest.mark.parametrize("y", [torch.zeros(3, N), torch.zeros(2, N, 1), torch.zeros(N), torch.zeros(N, 2).t()])
def test_the_native_call_refuses_other_axes_of_y(y):
    with pytest.raises(ValueError, match=r"int8_linear: x must be \[..., M, K\] and y \[..., M, N\]"):
        native(y)


def test_the_native_call_refuses_options_that_no_operator_has():
    with pytest.raises(ValueError, match=r"int8_linear: input_scale must have shape \(1,\), got \(96,\)"):
        native(input_scale=torch.ones(K))
    with pytest.raises(ValueError, match="int8_linear: input_offset needs input_scale"):
        native(input_offset=torch.ones(1))
    with pytest.raises(ValueError, match="int8_linear: group_size must be 0 with index, got 32"):
        native(index=torch.zeros(8, dtype=torch.int8), group_size=32)


def test_the_native_call_restores_y_when_a_compressed_weight_is_damaged():
    (x, stream, scale, bias, _), options = arguments((2, K), torch.float32, "compressed")
    stream[stream.numel() // 2] ^= 1
    y = torch.full((2, N), 7.0)
    with pytest.raises(ValueError, match="is damaged"):
        _call(x, stream, scale, bias, None, None, options["index"], y, scalars=(0, 0, 0))
    assert torch.equal(y, torch.full((2, N), 7.0))
