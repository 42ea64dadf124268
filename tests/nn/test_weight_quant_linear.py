# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import io

import pytest
import torch

import anynpu
from anynpu.nn import WeightQuantLinear
from anynpu.ops.weight_quant_matmul import reference

CONFIGS = [
    anynpu.W4A16(group_size=32),
    anynpu.W4A16(group_size=64, symmetric=False),
    anynpu.W4A16(group_size=0),
    anynpu.W8A16(),
    anynpu.W8A16(group_size=32, symmetric=False),
]
# K, N: packed along K; ragged; packed along N; neither a multiple of 8; a single word
SHAPES = [(128, 24), (200, 17), (99, 16), (67, 19), (8, 1), (1, 3)]


def linear(k=128, n=24, bias=True, seed=0):
    torch.manual_seed(seed)
    return torch.nn.Linear(k, n, bias)


def dequantised(layer):
    """[N, K] float64 of a layer, written apart from the operator."""
    k = layer.in_features
    codes = reference.integers(layer.matrix(), k)
    group = layer.group_size or k
    spread = [
        torch.zeros(1, 1) if value is None else value.reshape(-1, layer.out_features).repeat_interleave(group, 0)[:k]
        for value in (layer.scale, layer.offset)
    ]
    return ((codes + spread[1].double()) * spread[0].double()).T


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize(("k", "n"), SHAPES)
def test_rounds_every_weight_to_its_nearest_code(config, k, n):
    """Half a step at most (the offset's own float32 rounding aside), and no weight is cut off."""
    layer = config.layer(linear(k, n), "layer")
    weight = linear(k, n).weight.double()
    step = layer.scale.reshape(-1, n).repeat_interleave(layer.group_size or k, 0)[:k].T.double()
    rounding = 2.0**-22 * (step * 2**config.bits + weight.abs())
    assert ((dequantised(layer) - weight).abs() <= step / 2 + rounding).all()


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize(("k", "n"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_forward_is_the_product_with_the_dequantised_weight(config, k, n, dtype):
    layer = config.layer(linear(k, n), "layer")
    x = torch.randn(2, 3, k).to(dtype)
    y = layer(x)
    assert (y.shape, y.dtype) == ((2, 3, n), dtype)
    expected = x.double() @ dequantised(layer).T + layer.bias.double()
    operands = (x.reshape(6, k), layer.matrix(), layer.scale, layer.offset, layer.bias, None, None, layer.group_size)
    bound = reference.error_bound(*operands).reshape(2, 3, n) + torch.finfo(dtype).eps * expected.abs()
    assert ((y.double() - expected).abs() <= bound).all()
    assert layer(x[0, 0]).shape == (n,)
    assert layer(x[:, :0]).shape == (2, 0, n)


def test_asymmetric_codes_of_a_four_bit_grid_are_found_again():
    """Weights on a grid of 16 values with both ends present keep their values: the offset is added, and real."""
    g = torch.Generator().manual_seed(3)
    codes = torch.randint(0, 16, (24, 4, 32), generator=g)
    codes[..., 0], codes[..., 1] = 0, 15
    scale = torch.rand(24, 4, 1, generator=g) * 0.1 + 0.01
    weight = codes * scale - torch.rand(24, 4, 1, generator=g) - 0.2
    model = torch.nn.Linear(128, 24, bias=False)
    model.weight.data = weight.flatten(1)
    layer = anynpu.W4A16(group_size=32, symmetric=False).layer(model, "layer")
    torch.testing.assert_close(dequantised(layer).float(), weight.flatten(1), rtol=2**-20, atol=2**-20)


def test_equal_weights_and_zero_weights():
    model = torch.nn.Linear(64, 3, bias=False)
    model.weight.data = torch.tensor([[0.0], [0.7], [-1e-40]]).expand(3, 64).clone()
    for config in CONFIGS:
        real = dequantised(config.layer(model, "layer"))
        assert real[0].eq(0).all() and (real[1] - 0.7).abs().max() < 1e-7 and real[2].abs().max() <= 1e-40


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_must_be_finite(value):
    model = linear()
    model.weight.data[1, 2] = value
    with pytest.raises(ValueError, match="weight must be finite"):
        anynpu.W4A16().layer(model, "layer")


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double"])
def test_casting_the_module_keeps_its_scales(cast):
    layer = anynpu.W4A16(group_size=32, symmetric=False).layer(linear(), "layer")
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    x = torch.randn(2, 128).bfloat16()
    y = layer(x)
    getattr(layer, cast)()
    for name, tensor in layer.state_dict().items():
        assert tensor.dtype == before[name].dtype and torch.equal(tensor, before[name])
    assert torch.equal(layer(x), y)


def test_moves_to_other_devices_and_copies():
    layer = anynpu.W4A16(group_size=32).layer(linear(), "layer")
    x = torch.randn(2, 128)
    y = layer(x)
    twin = copy.deepcopy(layer)
    assert twin.prepacked is None and torch.equal(twin(x), y)
    assert twin.weight.data_ptr() != layer.weight.data_ptr()
    stream = io.BytesIO()
    torch.save(layer, stream)
    stream.seek(0)
    assert torch.equal(torch.load(stream, weights_only=False)(x), y)
    twin.to("meta")
    assert all(tensor.is_meta for tensor in twin.state_dict().values()) and twin.prepacked is None
    assert twin(x.to("meta")).shape == (2, 24)


def test_a_changed_weight_is_never_answered_from_the_old_copy():
    """In place, replaced, and loaded: the rearranged copy follows."""
    layer = anynpu.W4A16(group_size=32).layer(linear(), "layer")
    other = anynpu.W4A16(group_size=32).layer(linear(seed=1), "layer")
    x = torch.randn(2, 128)
    y, expected = layer(x), other(x)
    original = copy.deepcopy(layer.state_dict())
    with torch.no_grad():
        layer.weight.copy_(other.weight)
        layer.scale.copy_(other.scale)
        layer.bias.copy_(other.bias)
    assert torch.equal(layer(x), expected) and not torch.equal(y, expected)
    layer.load_state_dict(original)
    assert torch.equal(layer(x), y)
    layer.weight, layer.scale, layer.bias = other.weight.clone(), other.scale, other.bias
    assert torch.equal(layer(x), expected)
    layer.load_state_dict(original, assign=True)
    assert torch.equal(layer(x), y)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize(("k", "n"), [(128, 24), (100, 16), (99, 23)])
def test_a_prepacked_layer_holds_its_weight_once(config, k, n):
    """Packed along K, along N, and not packed: what is computed of the rearranged form is what was there."""
    layer = config.layer(torch.nn.Linear(k, n), "layer")
    plain = copy.deepcopy(layer)
    layer.prepack()
    assert layer.weight is None and plain.weight is not None
    x = torch.randn(2, k)
    assert torch.equal(layer(x), plain(x))
    assert layer.state_dict().keys() == plain.state_dict().keys()
    for name, tensor in plain.state_dict().items():
        assert torch.equal(layer.state_dict()[name], tensor)
    assert torch.equal(layer.codes(), plain.codes()) and torch.equal(layer.matrix(), plain.matrix())
    assert layer.matrix().stride() == plain.matrix().stride()


def test_a_prepacked_layer_moves_loads_and_copies():
    layer, other = (anynpu.W4A16(group_size=32).layer(linear(seed=seed), "layer") for seed in (0, 1))
    x = torch.randn(2, 128)
    expected, other_expected = layer(x), other(x)
    layer.prepack()
    twin = copy.deepcopy(layer)
    assert twin.weight is None and torch.equal(twin(x), expected)
    stream = io.BytesIO()
    torch.save(layer, stream)
    stream.seek(0)
    assert torch.equal(torch.load(stream, weights_only=False)(x), expected)
    layer.double()
    assert layer.weight is None and torch.equal(layer(x), expected)
    layer.load_state_dict(other.state_dict())
    assert layer.weight is None and torch.equal(layer(x), other_expected)
    layer.to_empty(device="cpu").load_state_dict(other.state_dict(), assign=True)
    assert torch.equal(layer(x), other_expected) and layer.weight is None
    twin.to("meta")
    assert twin.weight.is_meta and twin.prepacked is None


def test_state_dict_holds_the_plain_layouts_only():
    layer = anynpu.W4A16(group_size=32, symmetric=False).layer(linear(), "layer")
    layer.prepack()
    shapes = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in layer.state_dict().items()}
    assert shapes == {
        "weight": (torch.int32, (24, 16)),
        "scale": (torch.float32, (4, 24)),
        "offset": (torch.float32, (4, 24)),
        "bias": (torch.float32, (24,)),
    }


@pytest.mark.parametrize("prepacked", [True, False])
@pytest.mark.parametrize("config", [CONFIGS[1], CONFIGS[3]], ids=str)
def test_compiles_without_graph_breaks(config, prepacked):
    layer = config.layer(linear(), "layer")
    if prepacked:
        layer.prepack()
    torch._dynamo.reset()  # every instance counts towards the recompilation limit of the one forward
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (1, 2, 5):
        x = torch.randn(rows, 3, 128)
        assert torch.equal(compiled(x), copy.deepcopy(layer)(x))


def test_threads_may_make_the_copy_at_the_same_time(monkeypatch):
    """One makes it while another one looks whether there is one."""
    layer = anynpu.W4A16(group_size=32).layer(linear(), "layer")
    x, is_compiling = torch.randn(2, 128), torch.compiler.is_compiling
    expected = copy.deepcopy(layer)(x)

    others = [layer._rearrange]

    def is_compiling_while_another_thread_runs():
        while others:
            others.pop()()
        return is_compiling()

    monkeypatch.setattr(torch.compiler, "is_compiling", is_compiling_while_another_thread_runs)
    assert torch.equal(layer(x), expected)


def test_a_compiled_layer_reads_the_weight_as_it_is():
    """Not the copy of an earlier call: a graph does not see that the weight was changed in place."""
    layer = anynpu.W4A16(group_size=32).layer(linear(), "layer")
    x = torch.randn(2, 128)
    before = layer(x)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for seed in (1, 2):
        layer.weight.copy_(anynpu.W4A16(group_size=32).layer(linear(seed=seed), "layer").weight)
        after = compiled(x)
        assert torch.equal(after, layer(x)) and not torch.equal(after, before)


def test_runs_in_inference_mode():
    with torch.inference_mode():
        layer = anynpu.W4A16(group_size=32).layer(linear(), "layer")
        y = layer(torch.ones(2, 128))
    assert torch.equal(y, layer(torch.ones(2, 128)))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"in_features": 0}, "sizes must be positive"),
        ({"bits": 3}, "bits must be 4 or 8, got 3"),
        ({"group_size": 48}, r"group_size must be 0 or a multiple of 32 in \[32, in_features - 1\] = \[32, 127\]"),
        ({"group_size": 128}, "group_size must be 0 or"),
    ],
)
def test_invalid_layer_is_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        WeightQuantLinear(**{"in_features": 128, "out_features": 8, **arguments})
