# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

import anynpu
from anynpu.nn import Int4Linear
from anynpu.ops.quant_matmul.reference import error_bound

SHAPES = [(128, 24, 32), (128, 24, 0), (200, 17, 64), (99, 16, 96), (64, 8, 128)]  # K, N, group_size


def linear(k, n, bias=True):
    torch.manual_seed(0)
    return torch.nn.Linear(k, n, bias)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_forward_is_the_product_of_the_oracle(shape, dtype, isa):
    k, n, group_size = shape
    layer = anynpu.W4A8(group_size).layer(linear(k, n), "layer")
    x = torch.randn(2, 5, k).to(dtype)
    codes, row_scale = anynpu.reference.dynamic_quant(x.reshape(10, k))
    args = {"pertoken_scale": row_scale, "bias": layer.bias, "output_dtype": dtype, "group_size": layer.group_size}
    for prepacked in (False, True):
        if prepacked:
            layer.prepack()
        y = layer(x)
        assert (y.shape, y.dtype) == ((2, 5, n), dtype)
        weight = Int4Linear.from_quantized(anynpu.W4A8(group_size).quantize(linear(k, n).weight)).matrix()
        expected = anynpu.reference.quant_matmul(codes, weight, layer.scale, **args)
        bound = error_bound(codes, weight, layer.scale, **args)
        assert ((y.reshape(10, n).double() - expected.double()).abs() <= bound).all()


def test_it_is_close_to_the_float_layer():
    source, x = linear(512, 64), torch.randn(7, 512)
    layer = anynpu.quantize_(source, anynpu.W4A8(group_size=64))
    error = (layer(x) - source(x)).norm() / source(x).norm()
    assert 0 < error < 0.15
    grouped = anynpu.W4A16(group_size=64).layer(source, "layer")
    assert torch.equal(layer.codes(), grouped.codes()) and torch.equal(layer.scale, grouped.scale)


def test_save_and_load(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(96, 32), torch.nn.Linear(32, 8, bias=False))
    quantised = anynpu.quantize_(model, anynpu.W4A8(group_size=32))
    assert [type(layer) for layer in quantised] == [Int4Linear, Int4Linear]
    anynpu.save_quantized(quantised, tmp_path)
    with torch.device("meta"):
        empty = torch.nn.Sequential(torch.nn.Linear(96, 32), torch.nn.Linear(32, 8, bias=False))
    loaded = anynpu.load_quantized(empty, tmp_path)
    x = torch.randn(3, 96)
    assert torch.equal(loaded(x), quantised(x))
    assert loaded[0].fields() == {"in_features": 96, "out_features": 32, "group_size": 32, "bias": True}


def test_it_compiles_casts_and_takes_no_rows():
    layer = anynpu.quantize_(torch.nn.Sequential(linear(128, 24)), anynpu.W4A8(group_size=32))
    x = torch.randn(4, 128)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    assert torch.equal(compiled(x), layer(x))
    assert layer(x[:0]).shape == (0, 24)
    assert layer(x[0]).shape == (24,)
    half = layer.half()
    assert half[0].scale.dtype == torch.float32
    assert half(x.half()).dtype == torch.float16
    assert layer.to("meta")(torch.empty(2, 128, device="meta")).shape == (2, 24)


def test_what_it_refuses():
    with pytest.raises(ValueError, match=r"in_features or out_features must be a multiple of 8 .*, got \(67, 19\)"):
        Int4Linear(67, 19)
    with pytest.raises(ValueError, match="in_features must be at most 131071, got 131072"):
        Int4Linear(131072, 8, device="meta")
    with pytest.raises(ValueError, match="layer '0': W4A8: group_size must be a multiple of 32, got 20"):
        anynpu.quantize_(torch.nn.Sequential(linear(128, 24)), anynpu.W4A8(group_size=20))
    with pytest.raises(ValueError, match="must have no offset or order of inputs"):
        Int4Linear.from_quantized(anynpu.W4A16(32, symmetric=False).quantize(torch.randn(8, 64)))
    with pytest.raises(ValueError, match=r"Int4Linear: the last axis of x must be 64, got shape \(4, 32\)"):
        Int4Linear(64, 8)(torch.ones(4, 32))
