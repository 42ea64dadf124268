# SPDX-License-Identifier: Apache-2.0
"""Models written in another producer's layout, and Ascend's folders read."""

from __future__ import annotations

import json

import checkpoint_folders as folders
import pytest
import torch
from checkpoint_folders import logits, model_of
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import anynpu
from anynpu.checkpoints import convert_checkpoint
from anynpu.cli import app
from anynpu.kv_cache import KVScales

SOURCES = {
    "gptq": lambda folder: folders.gptq(model_of("qwen2"), folder),
    "gptq, one group": lambda folder: folders.gptq(model_of(tied=True), folder, group=-1),
    "gptq, 8 bits": lambda folder: folders.gptq(model_of(), folder, bits=8, group=-1),
    "pack-quantized": lambda folder: folders.compressed_weights(model_of(tied=True), folder),
    "W8A8 dynamic": lambda folder: folders.compressed_int8(model_of("qwen2"), folder),
    "W8A8 static": lambda folder: folders.compressed_int8(model_of(), folder, static=True),
    "W8A8 static, zero point": lambda folder: folders.compressed_int8(model_of(), folder, static=True, zero=-7),
}
ONLY_COMPRESSED = {
    "awq": lambda folder: folders.awq(model_of(), folder),
    "gptq, act-order": lambda folder: folders.gptq(model_of(), folder, act_order=True, symmetric=False),
    "pack-quantized, 8 bits, groups": lambda folder: folders.compressed_weights(
        model_of(), folder, bits=8, symmetric=False, act_order=True
    ),
}


def codes(model):
    return {name: tensor for name, tensor in model.state_dict().items() if name.endswith(".weight")}


def require_equal(first, second):
    """The same tensors, and the same bits out."""
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.mark.parametrize("case", SOURCES)
def test_to_ascend_and_back(case, tmp_path):
    SOURCES[case](tmp_path / "in")
    want = anynpu.load_checkpoint(tmp_path / "in")
    count = convert_checkpoint(tmp_path / "in", tmp_path / "ascend", "msmodelslim")
    assert count == 14
    got = anynpu.load_checkpoint(tmp_path / "ascend")
    require_equal(codes(got), codes(want))
    if case == "gptq, one group":  # scales are repeated for groups, which the sums of some kernels are cut by
        assert torch.allclose(logits(got), logits(want), rtol=0, atol=1e-5)
    else:
        assert torch.equal(logits(got), logits(want))
    convert_checkpoint(tmp_path / "ascend", tmp_path / "out", "compressed-tensors")
    again = anynpu.load_checkpoint(tmp_path / "out")
    require_equal(codes(again), codes(want))
    if case in (
        "gptq, one group",
        "W8A8 static, zero point",
    ):  # as above; deq_scale is divided by input_scale and multiplied again
        assert torch.allclose(logits(again), logits(want), rtol=0, atol=1e-5)
    else:
        assert torch.equal(logits(again), logits(want))


@pytest.mark.parametrize("case", ONLY_COMPRESSED)
def test_what_only_compressed_tensors_holds(case, tmp_path):
    ONLY_COMPRESSED[case](tmp_path / "in")
    want = anynpu.load_checkpoint(tmp_path / "in")
    convert_checkpoint(tmp_path / "in", tmp_path / "out", "compressed-tensors")
    got = anynpu.load_checkpoint(tmp_path / "out")
    # The order within a group is not kept, since a group of each input is all that the file names.
    assert torch.allclose(logits(got), logits(want), rtol=0, atol=1e-5)
    if "act-order" not in case and "groups" not in case:
        require_equal(codes(got), codes(want))
    with pytest.raises(ValueError, match="convert_checkpoint: layer .* no place"):
        convert_checkpoint(tmp_path / "in", tmp_path / "ascend", "msmodelslim")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


@pytest.mark.parametrize("case", ["gptq", "W8A8 static, zero point"])
def test_own_folders(case, tmp_path):
    SOURCES[case](tmp_path / "in")
    convert_checkpoint(tmp_path / "in", tmp_path / "own", "anynpu")
    want, got = (anynpu.load_checkpoint(tmp_path / name) for name in ("in", "own"))
    require_equal(got.state_dict(), want.state_dict())
    assert torch.equal(logits(got), logits(want))
    convert_checkpoint(tmp_path / "own", tmp_path / "ascend", "msmodelslim")
    assert torch.equal(logits(anynpu.load_checkpoint(tmp_path / "ascend")), logits(want))


def test_scales_of_the_kv_cache_go_along(tmp_path):
    SOURCES["W8A8 dynamic"](tmp_path / "in")
    convert_checkpoint(tmp_path / "in", tmp_path / "own", "anynpu")
    scales = KVScales(*(torch.rand(2, 2, 16, generator=torch.manual_seed(seed)) for seed in (0, 1)))
    scales.save(tmp_path / "own")
    convert_checkpoint(tmp_path / "own", tmp_path / "c8", "msmodelslim")
    convert_checkpoint(tmp_path / "c8", tmp_path / "again", "msmodelslim")
    convert_checkpoint(tmp_path / "again", tmp_path / "back", "anynpu")
    convert_checkpoint(tmp_path / "c8", tmp_path / "plain", "compressed-tensors")
    got, want = KVScales.load(tmp_path / "back"), logits(anynpu.load_checkpoint(tmp_path / "in"))
    assert torch.equal(got.k, scales.k) and torch.equal(got.v, scales.v)
    for name in ("c8", "back", "plain"):
        assert torch.equal(logits(anynpu.load_checkpoint(tmp_path / name)), want)

    (file,) = (tmp_path / "c8").glob("quant_model_weight*.safetensors")
    description, tensors = json.loads((tmp_path / "c8" / "quant_model_description.json").read_text()), load_file(file)
    own = "model.layers.1.self_attn.v_proj."
    assert description["kv_cache_type"] == description[own + "kv_cache_scale"] == "C8"
    assert description[own + "weight"] == description["model_quant_type"] == "W8A8_DYNAMIC"
    assert torch.equal(tensors[own + "kv_cache_scale"], scales.v[1].flatten())
    assert torch.equal(tensors[own + "kv_cache_offset"], torch.zeros(32))


def test_refused_scales_of_the_kv_cache(tmp_path):
    SOURCES["W8A8 dynamic"](tmp_path / "in")
    convert_checkpoint(tmp_path / "in", tmp_path / "own", "anynpu")
    KVScales(torch.ones(1, 2, 16), torch.ones(1, 2, 16)).save(tmp_path / "own")
    with pytest.raises(ValueError, match="scales of the KV cache must be those of 2 layers with a k_proj, got 1"):
        convert_checkpoint(tmp_path / "own", tmp_path / "out", "msmodelslim")
    KVScales(torch.ones(2, 2, 16), torch.ones(2, 2, 16)).save(tmp_path / "own")
    convert_checkpoint(tmp_path / "own", tmp_path / "c8", "msmodelslim")
    (file,) = (tmp_path / "c8").glob("quant_model_weight*.safetensors")
    tensors, name = load_file(file), "model.layers.0.self_attn.k_proj.kv_cache_"
    for key, value, rule in (
        ("offset", torch.ones(32), "k_proj.kv_cache_offset must be 0 everywhere, got other values"),
        ("scale", torch.ones(1), "k_proj.kv_cache_scale must have a scale for each channel, got 1"),
    ):
        save_file(tensors | {name + key: value}, file, {"format": "pt"})
        with pytest.raises(ValueError, match=rule):
            convert_checkpoint(tmp_path / "c8", tmp_path / "out", "anynpu")


def test_a_bias_that_no_unit_makes_up_is_refused(tmp_path):
    folders.compressed_int8(model_of("qwen2"), tmp_path / "in", static=True)
    (file,) = (tmp_path / "in").glob("*.safetensors")
    tensors, name = load_file(file), "model.layers.0.self_attn.q_proj."
    tensors[name + "weight_scale"][3] = 0
    tensors[name + "bias"][3] = 1
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ValueError, match=f"layer {name[:-1]}: .*bias must be an int32 in units of deq_scale"):
        convert_checkpoint(tmp_path / "in", tmp_path / "out", "msmodelslim")


def test_the_layout_that_vllm_ascend_reads(tmp_path):
    """Names, dtypes and shapes of its loader, for each type."""
    folders.gptq(model_of(), tmp_path / "w4")
    convert_checkpoint(tmp_path / "w4", tmp_path / "out", "msmodelslim")
    (file,) = (tmp_path / "out").glob("quant_model_weight*.safetensors")
    tensors, prefix = load_file(file), "model.layers.0.mlp.down_proj."
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    n, k = folders.HIDDEN, folders.INTERMEDIATE
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in own.items()} == {
        "weight": (torch.int8, (n // 2, k)),
        "weight_scale": (torch.float32, (n, 1)),
        "weight_offset": (torch.float32, (n, 1)),
        "weight_scale_second": (torch.float32, (n, k // 32)),
        "weight_offset_second": (torch.int64, (n, k // 32)),
        "scale_bias": (torch.float32, (n, 16)),
    }
    description = json.loads((tmp_path / "out" / "quant_model_description.json").read_text())
    assert description.items() >= {"version": "1.0.0", "group_size": 32, "model.norm.weight": "FLOAT"}.items()
    assert {description[prefix + name] for name in own} == {"W4A8_DYNAMIC"}
    assert tensors.keys() <= description.keys()
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


def ascend(folder, kind, tensors_of, **options):
    """A folder of msModelSlim from the plain layout; returns the model with layers of the plain formulas."""
    model = model_of(**options)
    plain = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    quantized = {}
    for name, linear in folders.linears_of(model).items():
        tensors, stand_in = tensors_of(linear)
        quantized |= {f"{name}.{key}": tensor for key, tensor in tensors.items()}
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, stand_in)
    tensors = {name: tensor for name, tensor in plain.items() if name not in quantized} | quantized
    folder.mkdir()
    save_file(tensors, folder / "quant_model_weight_x.safetensors")
    types = {name: kind if name in quantized else "FLOAT" for name in tensors}
    (folder / "quant_model_description_x.json").write_text(json.dumps({"model_quant_type": kind, **types}))
    config = {**model.config.to_dict(), "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    return model


@pytest.mark.parametrize("as_int64", [False, True])
def test_w8a8_static_of_ascend(tmp_path, as_int64):
    generator = torch.Generator().manual_seed(3)

    def make(linear):
        weight = torch.randint(-128, 128, linear.weight.shape, generator=generator, dtype=torch.int8)
        scale = torch.rand(len(weight), generator=generator) * 1e-3 + 1e-4
        units = torch.randint(-4000, 4000, (len(weight),), generator=generator)
        step, zero = 0.03125, 5
        deq = scale * step
        tensors = {
            "weight": weight,
            "input_scale": torch.tensor([step]),
            "input_offset": torch.tensor([zero], dtype=torch.int8),
            "deq_scale": deq.view(torch.int32).long() if as_int64 else deq,
            "quant_bias": (units - zero * weight.long().sum(1)).int(),
            "weight_scale": scale[:, None],
            "weight_offset": torch.zeros(len(weight), 1),
        }
        return tensors, folders.FakeInt8Linear(weight, scale, units * deq.double(), step, zero)

    model = ascend(tmp_path / "in", "W8A8", make)
    got = logits(anynpu.load_checkpoint(tmp_path / "in"))
    want = logits(model)
    assert torch.allclose(got, want, rtol=0, atol=2e-2 * float(want.abs().max()))


@pytest.mark.parametrize("kind", ["W4A16", "W4A8_DYNAMIC", "W8A16"])
def test_weights_of_ascend(tmp_path, kind):
    generator = torch.Generator().manual_seed(3)
    limit, groups = (8, 2) if kind.startswith("W4") else (128, 1)

    def make(linear):
        n, k = linear.weight.shape
        weight = torch.randint(-limit, limit, (n, k), generator=generator, dtype=torch.int8)
        scale = torch.rand(n, 1, generator=generator) * 1e-2 + 1e-3
        second = torch.rand(n, groups, generator=generator) + 0.5 if groups > 1 else torch.ones(n, 1)
        linear.weight.data = weight.float() * (scale * second).repeat_interleave(k // groups, dim=1)
        tensors = {"weight": weight, "weight_scale": scale, "weight_offset": torch.zeros(n, 1)}
        if groups > 1:
            tensors["weight_scale_second"] = second
            tensors["weight_offset_second"] = torch.zeros(n, groups)
        return tensors, linear

    model = ascend(tmp_path / "in", kind, make, intermediate_size=128)
    got, want = logits(anynpu.load_checkpoint(tmp_path / "in")), logits(model)
    assert torch.allclose(got, want, rtol=0, atol=2e-5 * float(want.abs().max()))


def with_int8_activations(folder, **activations):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for group in config["quantization_config"]["config_groups"].values():
        group["input_activations"] = {"num_bits": 8, "type": "int", "symmetric": True, **activations}
    path.write_text(json.dumps(config))


@pytest.mark.parametrize("packed", [True, False])
def test_int4_beside_int8_activations(tmp_path, packed):
    model = model_of()
    folders.compressed_weights(model, tmp_path / "in", packed=packed)
    with_int8_activations(tmp_path / "in", dynamic=True, strategy="token")
    loaded = anynpu.load_checkpoint(tmp_path / "in")
    layers = [module for module in loaded.modules() if isinstance(module, anynpu.nn.QuantizedLinear)]
    assert len(layers) == 14 and {type(layer) for layer in layers} == {anynpu.nn.Int4Linear}
    got, want = logits(loaded), logits(model)
    assert 0 < (got - want).norm() < 5e-2 * want.norm()
    for target in ("compressed-tensors", "anynpu"):
        convert_checkpoint(tmp_path / "in", tmp_path / target, target)
        assert torch.equal(logits(anynpu.load_checkpoint(tmp_path / target)), got)
    convert_checkpoint(tmp_path / "in", tmp_path / "ascend", "msmodelslim")
    ascend_layers = anynpu.load_checkpoint(tmp_path / "ascend").modules()  # vllm-ascend multiplies with float x
    assert sum(type(layer) is anynpu.nn.WeightQuantLinear for layer in ascend_layers) == 14


def test_int4_beside_static_activations_is_refused(tmp_path):
    folders.compressed_weights(model_of(), tmp_path)
    with_int8_activations(tmp_path, dynamic=False, strategy="tensor")
    with pytest.raises(ValueError, match="input_activations of int4 weights must be dynamic, got static"):
        anynpu.load_checkpoint(tmp_path)


@pytest.fixture
def damaged(tmp_path):
    """A function that changes tensors and types of an Ascend folder, and gives the error of loading it."""
    folders.compressed_int8(model_of(), tmp_path / "in", static=True)
    convert_checkpoint(tmp_path / "in", tmp_path / "out", "msmodelslim")
    (file,) = (tmp_path / "out").glob("*.safetensors")
    path = tmp_path / "out" / "quant_model_description.json"

    def change(tensors, types):
        changed = load_file(file) | {
            f"model.layers.1.mlp.up_proj.{key}": value for key, value in (tensors or {}).items()
        }
        save_file(changed, file)
        path.write_text(json.dumps(json.loads(path.read_text()) | (types or {})))
        with pytest.raises((TypeError, ValueError)) as caught:
            anynpu.load_checkpoint(tmp_path / "out")
        return str(caught.value)

    return change


UP = "model.layers.1.mlp.up_proj"


@pytest.mark.parametrize(
    ("tensors", "types", "sentence"),
    [
        (
            {"input_offset": torch.tensor([1, 2], dtype=torch.int8)},
            {},
            "input_offset must have one value, got shape (2,)",
        ),
        ({"input_offset": torch.tensor([0.5])}, {}, "input_offset must be a whole number"),
        ({"weight_offset": torch.ones(96, 1)}, {}, "weight_offset of a layer with int8 activations must be 0"),
        ({"quant_bias": torch.zeros(95, dtype=torch.int32)}, {}, "quant_bias must have shape (96,), got (95,)"),
        ({"deq_scale": torch.zeros(96).half()}, {}, "deq_scale must be float32 or int64, got float16"),
        ({"weight": torch.zeros(96, 60, dtype=torch.int8)}, {}, "weight must have shape (96, 64), got (96, 60)"),
        ({}, {f"{UP}.weight": 8}, "must name the type of model.layers.1.mlp.up_proj.weight, got 8"),
        ({}, {f"{UP}.weight": "FLOAT"}, "types of the tensors of model.layers.1.mlp.up_proj must be"),
        ({}, {f"{UP}.weight": "W8A8_DYNAMIC"}, "of its weight, W8A8_DYNAMIC, or FLOAT"),
    ],
)
def test_damaged_folders_of_ascend(damaged, tensors, types, sentence):
    message = damaged(tensors, types)
    assert sentence in message
    assert message.startswith("load_checkpoint: ")
    assert "up_proj" in message


def test_the_command(tmp_path):
    folders.gptq(model_of(), tmp_path / "in")
    (tmp_path / "in" / "tokenizer.json").write_text("{}")
    arguments = ["convert", str(tmp_path / "in"), str(tmp_path / "out"), "--to", "msmodelslim"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "14 quantised layers" in result.output
    assert (tmp_path / "out" / "tokenizer.json").exists()
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 1
    assert "exists and is not overwritten" in again.output
    (tmp_path / "in" / "model.safetensors").write_bytes(b"damaged")
    failed = CliRunner().invoke(app, ["convert", str(tmp_path / "in"), str(tmp_path / "x"), "--to", "anynpu"])
    assert failed.exit_code == 1
    assert "no safetensors file or damaged" in failed.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_floats_are_not_converted(tmp_path):
    model_of().save_pretrained(tmp_path / "float")
    with pytest.raises(ValueError, match="convert_checkpoint: .*float must hold quantised layers, got floats alone"):
        convert_checkpoint(tmp_path / "float", tmp_path / "out", "msmodelslim")
    assert not (tmp_path / "out").exists()
