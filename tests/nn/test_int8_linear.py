# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import io
import json

import pytest
import torch

import anynpu
from anynpu.nn import CompressedLinear, QuantLinear, StaticQuantLinear
from anynpu.ops.quant_matmul.int8_linear import reads_prepacked
from anynpu.ops.quant_matmul.reference import error_bound
from anynpu.quantization.checkpoint import DESCRIPTION

SHAPES = [(128, 24), (300, 200), (67, 19), (1, 1)]
KINDS = [QuantLinear, CompressedLinear]


def linear(k=128, n=24, bias=True, seed=0):
    torch.manual_seed(seed)
    layer = torch.nn.Linear(k, n, bias)
    torch.nn.init.normal_(layer.weight)  # uniform weights do not compress
    return layer


def layer_of(kind, k=128, n=24, bias=True, static=False, granularity="channel", seed=0):
    config = {QuantLinear: anynpu.W8A8, CompressedLinear: anynpu.W8A8Compressed}[kind]
    scales = anynpu.ActivationScales({"it": 0.02}) if static else None
    return config(scales, granularity).layer(linear(k, n, bias, seed), "it")


def codes_of(layer):
    if isinstance(layer, QuantLinear):
        return layer.codes()
    return anynpu.formats.decompress_weight(layer.compressed())


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize(("k", "n"), SHAPES)
def test_rounds_every_weight_to_its_nearest_code(granularity, k, n):
    """Half a step at most, but for the float32 rounding of the quotient (2**-24 of at most 128 steps)."""
    layer = layer_of(QuantLinear, k, n, granularity=granularity)
    step = layer.scale.double().unsqueeze(1)
    error = (layer.weight.double() * step - linear(k, n).weight.double()).abs()
    assert (error <= step * (0.5 + 2.0**-17)).all()
    assert (len(layer.scale.unique()) == 1) == (granularity == "tensor" or n == 1)


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("k", "n"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_forward_is_the_exact_product_of_the_codes(kind, k, n, static, dtype):
    layer = layer_of(kind, k, n, static=static)
    x = torch.randn(2, 3, k).to(dtype)
    rows = x.reshape(6, k)
    if static:
        token_scale = layer.input_scale.expand(6)
        codes = (rows.float() / layer.input_scale).round().clamp(-128, 127).to(torch.int8)
    else:
        codes, token_scale = anynpu.reference.dynamic_quant(rows)
    operands = (codes, codes_of(layer).t(), layer.scale)
    options = {"pertoken_scale": token_scale, "bias": layer.bias, "output_dtype": dtype}
    expected = anynpu.reference.quant_matmul(*operands, **options).reshape(2, 3, n)
    y = layer(x)
    assert (y.shape, y.dtype) == ((2, 3, n), dtype)
    assert ((y.double() - expected.double()).abs() <= error_bound(*operands, **options).reshape(2, 3, n)).all()
    assert torch.equal(layer(x[0, 0]), y[0, 0])
    assert layer(x[:, :0]).shape == (2, 0, n)


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_compressed_weights_give_equal_bits(granularity, static, dtype):
    plain, compressed = (layer_of(kind, 600, 150, static=static, granularity=granularity) for kind in KINDS)
    x = torch.randn(5, 600).to(dtype)
    assert torch.equal(compressed(x), plain(x))
    assert compressed.stream_bytes < plain.weight.numel()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cast", ["half", "bfloat16", "double"])
def test_casting_the_module_keeps_its_scales(kind, cast):
    layer = layer_of(kind, static=True)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    getattr(layer, cast)()
    for name, tensor in layer.state_dict().items():
        assert tensor.dtype == before[name].dtype and torch.equal(tensor, before[name])


@pytest.mark.parametrize("kind", KINDS)
def test_moves_to_other_devices_copies_and_pickles(kind):
    layer = layer_of(kind, static=True)
    x = torch.randn(2, 128)
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(x), layer(x))
    stream = io.BytesIO()
    torch.save(layer, stream)
    stream.seek(0)
    assert torch.equal(torch.load(stream, weights_only=False)(x), layer(x))
    twin.to("meta")
    assert all(tensor.is_meta for tensor in twin.state_dict().values())
    assert twin(x.to("meta")).shape == (2, 24)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("assign", [False, True])
def test_state_dicts_of_other_weights_load(kind, assign):
    layer, other = layer_of(kind), layer_of(kind, seed=1)
    with torch.no_grad():
        source = linear(seed=1)
        source.weight[:, :100] = 0  # compresses to another length
        other = {QuantLinear: anynpu.W8A8, CompressedLinear: anynpu.W8A8Compressed}[kind]().layer(source, "it")
    x = torch.randn(2, 128)
    layer.load_state_dict(other.state_dict(), assign=assign)
    assert torch.equal(layer(x), other(x))


def test_a_stream_that_cannot_be_is_refused():
    layer = layer_of(CompressedLinear)
    state = layer.state_dict() | {"stream": torch.zeros(10**6, dtype=torch.int8)}
    with pytest.raises(RuntimeError, match="size mismatch for stream"):
        layer.load_state_dict(state)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
def test_compiles_without_graph_breaks(kind, static):
    layer = layer_of(kind, static=static)
    torch._dynamo.reset()  # every instance counts towards the recompilation limit of the one forward
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (1, 2, 5):
        x = torch.randn(rows, 3, 128)
        assert torch.equal(compiled(x), layer(x))


def model(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(300, 130), torch.nn.ReLU(), torch.nn.Linear(130, 20, bias=False))


def quantised(config, seed=0):
    if config.activations is not None:
        config = type(config)(anynpu.calibrate_activations(model(seed), [torch.randn(50, 300)]), config.granularity)
    return anynpu.quantize_(model(seed), config)


STATIC = anynpu.ActivationScales({})  # replaced by those of the model
CONFIGS = [
    anynpu.W8A8(),
    anynpu.W8A8(STATIC, "tensor"),
    anynpu.W8A8Compressed(),
    anynpu.W8A8Compressed(STATIC),
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_quantised_model_is_near_the_float_one(config):
    """A coarse end-to-end check of the signs and scales."""
    x = torch.randn(50, 300)
    expected = model()(x)
    error = (quantised(config)(x) - expected).norm() / expected.norm()
    assert 0 < error < 0.03


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_checkpoint_round_trip(config, tmp_path):
    saved = quantised(config)
    anynpu.save_quantized(saved, tmp_path)
    x = torch.randn(4, 300)
    for empty in (model(1), model(2).to("meta"), quantised(anynpu.W8A8(), seed=3)):
        loaded = anynpu.load_quantized(empty, tmp_path)
        assert type(loaded[0]) is type(saved[0]) and torch.equal(loaded(x), saved(x))


@pytest.mark.parametrize(
    ("config", "change", "match"),
    [
        (CONFIGS[0], lambda layer: layer.update(static=True), "lacks .* the first is .'0.input_scale'"),
        (CONFIGS[0], lambda layer: layer.update(kind="CompressedLinear"), "must have the fields .*stream_bytes"),
        (CONFIGS[2], lambda layer: layer.update(stream_bytes=0), r"stream_bytes must be in \[1, "),
        (CONFIGS[2], lambda layer: layer.update(stream_bytes=100), r"0.stream must have shape \(100,\)"),
        (
            CONFIGS[2],
            lambda layer: layer.update(in_features=131072),
            "in_features must be at most|must have .in_features",
        ),
    ],
)
def test_a_damaged_description_is_refused(config, change, match, tmp_path):
    anynpu.save_quantized(quantised(config), tmp_path)
    description = json.loads((tmp_path / DESCRIPTION).read_text())
    change(description["layers"]["0"])
    (tmp_path / DESCRIPTION).write_text(json.dumps(description))
    with pytest.raises(ValueError, match=match):
        anynpu.load_quantized(model(1), tmp_path)


def test_damaged_values_are_refused(tmp_path):
    for scale in (0.0, -1.0, float("nan"), float("inf")):
        damaged = quantised(CONFIGS[1])
        damaged[0].input_scale.fill_(scale)
        anynpu.save_quantized(damaged, tmp_path)
        with pytest.raises(ValueError, match="QuantLinear: input_scale must be positive and finite"):
            anynpu.load_quantized(model(1), tmp_path)
    damaged = quantised(CONFIGS[2])
    damaged[0].stream[77] ^= 1
    anynpu.save_quantized(damaged, tmp_path)
    target = model(1)
    with pytest.raises(ValueError, match="of the compressed weight .* is damaged"):
        anynpu.load_quantized(target, tmp_path)
    assert type(target[0]) is torch.nn.Linear


def test_mistakes_are_refused():
    with pytest.raises(ValueError, match="W8A8: granularity must be channel or tensor, got 'row'"):
        anynpu.W8A8(granularity="row")
    with pytest.raises(TypeError, match="W8A8Compressed: activations must be None or the result of"):
        anynpu.W8A8Compressed(activations={"0": 0.1})
    with pytest.raises(ValueError, match="layer '0': W8A8: no batch of the calibration reached this layer"):
        anynpu.quantize_(model(), anynpu.W8A8(anynpu.ActivationScales({})))
    with pytest.raises(ValueError, match="in_features must be at most 131071"):
        QuantLinear(131072, 8, device="meta")
    with pytest.raises(ValueError, match=r"QuantLinear: the last axis of x must be 64, got shape \(4, 32\)"):
        QuantLinear(64, 8)(torch.ones(4, 32))
    with pytest.raises(ValueError, match="stream_bytes must be in"):
        CompressedLinear(64, 8, 10**6)
    broken = model()
    broken[2].weight.data[1, 1] = float("inf")
    with pytest.raises(ValueError, match="layer '2': W8A8: weight must be finite"):
        anynpu.quantize_(broken, anynpu.W8A8())


def prepacked_layers():
    yield layer_of(QuantLinear, 100, 33)
    yield layer_of(QuantLinear, 100, 33, static=True)
    codes = torch.randint(-128, 128, (33, 100), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    step = torch.tensor([0.02])
    yield StaticQuantLinear.from_codes(
        codes, torch.arange(33, dtype=torch.int32), torch.rand(33), step, torch.tensor([3.0])
    )


@pytest.mark.parametrize("layer", list(prepacked_layers()), ids=lambda layer: type(layer).__name__)
def test_a_prepacked_layer_holds_its_weight_once(layer, isa):
    layer, plain, x = copy.deepcopy(layer), copy.deepcopy(layer), torch.randn(7, 100)
    layer.prepack()
    rearranged = isa not in ("avx2", "portable")
    assert (layer.weight is None) == rearranged and (layer.prepacked is not None) == rearranged
    assert torch.equal(layer(x), plain(x))
    assert torch.equal(layer.codes(), plain.codes()) and torch.equal(layer.dequantized(), plain.dequantized())
    assert layer.state_dict().keys() == plain.state_dict().keys()
    for name, tensor in plain.state_dict().items():
        assert torch.equal(layer.state_dict()[name], tensor)
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(x), plain(x))
    twin.load_state_dict(plain.state_dict())
    twin.bfloat16().float()
    assert (twin.weight is None) == rearranged and torch.equal(twin(x), plain(x))
    assert layer.to("meta").weight.is_meta


def test_quantize_prepacks_and_the_layer_compiles():
    model = torch.nn.Sequential(linear(128, 24))
    quantised = anynpu.quantize_(model, anynpu.W8A8())
    assert (quantised[0].weight is None) == reads_prepacked()
    x = torch.randn(3, 128)
    compiled = torch.compile(quantised, fullgraph=True, dynamic=True, backend="aot_eager")
    assert torch.equal(compiled(x), quantised(x))
