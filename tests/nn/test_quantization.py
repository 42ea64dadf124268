# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import concurrent.futures
import copy
import dataclasses
import json
import os
import shutil
import warnings
from pathlib import Path

import pytest
import torch

import anynpu
from anynpu.nn import WeightQuantLinear
from anynpu.quantization.checkpoint import DESCRIPTION


class Tiny(torch.nn.Module):
    """An embedding tied to the output layer, a layer used twice, a subclass of Linear, and an odd size."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(40, 64)
        self.up = torch.nn.Linear(64, 99)
        self.down = torch.nn.Linear(99, 64, bias=False)
        self.again = self.up
        self.attention = torch.nn.MultiheadAttention(64, 2, batch_first=True)
        self.norm = torch.nn.LayerNorm(64)
        self.lm_head = torch.nn.Linear(64, 40, bias=False)
        self.lm_head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.embed(tokens)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = x + self.down(torch.relu(self.up(x)) + torch.relu(self.again(x)))
        return self.lm_head(self.norm(x))


CONFIGS = [anynpu.W4A16(group_size=32), anynpu.W4A16(group_size=32, symmetric=False), anynpu.W8A16()]
TOKENS = torch.arange(24).reshape(2, 12)


def tiny(seed=0):
    torch.manual_seed(seed)
    return Tiny().eval()


def quantised(config=CONFIGS[0], skip=("lm_head",), seed=0):
    return anynpu.quantize_(tiny(seed), config, skip=skip)


def test_replaces_exactly_the_linear_layers():
    model = tiny()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert anynpu.quantize_(model, anynpu.W4A16(group_size=32), skip=("lm_head",)) is model
    kinds = {name: type(module) for name, module in model.named_modules(remove_duplicate=False) if name}
    replaced = {name for name, kind in kinds.items() if kind is WeightQuantLinear}
    assert replaced == {"up", "down", "again"}
    assert model.again is model.up and model.lm_head.weight is model.embed.weight
    assert not model.up.training


@pytest.mark.parametrize("config", [*CONFIGS, anynpu.W4A16(), anynpu.W8A16(group_size=32)], ids=str)
def test_quantised_model_is_near_the_float_one(config):
    """A coarse end-to-end check; test_weight_quant_linear holds the exact ones."""
    expected = tiny()(TOKENS)
    y = quantised(config)(TOKENS)
    error = (y - expected).norm() / expected.norm()
    assert 0 < error < (0.1 if config.bits == 4 else 0.01)


def test_tied_weight_is_copied_with_a_warning():
    model = tiny()
    embedding = model.embed.weight.clone()
    with pytest.warns(UserWarning, match=r"lm_head.weight was tied to embed.weight, which keeps its own float weight"):
        anynpu.quantize_(model, anynpu.W8A16())
    assert isinstance(model.lm_head, WeightQuantLinear) and torch.equal(model.embed.weight, embedding)


def test_filter_and_patterns_choose_layers():
    model = anynpu.quantize_(tiny(), CONFIGS[0], filter_fn=lambda module, name: module.out_features == 99)
    assert isinstance(model.up, WeightQuantLinear) and isinstance(model.down, torch.nn.Linear)
    model = anynpu.quantize_(tiny(), CONFIGS[0], skip=("*p", "again", "lm_head"))
    assert isinstance(model.down, WeightQuantLinear) and isinstance(model.up, torch.nn.Linear)


def test_nothing_to_quantise_is_said():
    with pytest.warns(UserWarning, match="no layer was chosen"):
        anynpu.quantize_(torch.nn.Sequential(torch.nn.ReLU()), CONFIGS[0])


def test_a_model_that_is_one_layer():
    linear = torch.nn.Linear(64, 8)
    layer = anynpu.quantize_(linear, CONFIGS[0])
    assert isinstance(layer, WeightQuantLinear) and type(linear) is torch.nn.Linear


def test_an_error_leaves_the_model_as_it_was():
    model = tiny()
    model.down.weight.data[3, 4] = float("nan")
    with pytest.raises(ValueError, match="layer 'down': W4A16: weight must be finite"):
        anynpu.quantize_(model, CONFIGS[0], skip=("lm_head",))
    assert type(model.up) is torch.nn.Linear


def test_a_model_without_values_is_refused():
    with pytest.raises(ValueError, match="layer 'up': its parameters are on the device meta"):
        anynpu.quantize_(tiny().to("meta"), anynpu.W4A16())


def test_mistakes_are_refused():
    with pytest.raises(ValueError, match="'head' in skip fits no"):
        anynpu.quantize_(tiny(), CONFIGS[0], skip=("head",))
    with pytest.raises(TypeError, match="skip must be a sequence of names"):
        anynpu.quantize_(tiny(), CONFIGS[0], skip="lm_head")
    with pytest.raises(TypeError, match="model must be a module, got OrderedDict"):
        anynpu.quantize_(tiny().state_dict(), CONFIGS[0])
    with pytest.raises(TypeError, match="config must be"):
        anynpu.quantize_(tiny(), anynpu.W4A16)
    for group_size in (-32, 16, 100, 32.0):
        with pytest.raises(ValueError, match="group_size must be 0 or a multiple of 32"):
            anynpu.W4A16(group_size=group_size)
    with pytest.raises(TypeError, match="symmetric must be a bool"):
        anynpu.W8A16(symmetric=0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        anynpu.W4A16().group_size = 64


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_checkpoint_round_trip(config, tmp_path):
    model = quantised(config)
    anynpu.save_quantized(model, tmp_path / "new" / "folder")
    loaded = anynpu.load_quantized(tiny(seed=1), tmp_path / "new" / "folder")
    assert torch.equal(loaded(TOKENS), model(TOKENS))
    assert loaded.lm_head.weight is loaded.embed.weight and loaded.again is loaded.up
    names = sorted(path.suffix for path in (tmp_path / "new" / "folder").iterdir())
    assert names == [".json", ".safetensors"]


def test_checkpoint_loads_into_a_meta_model_and_over_a_quantised_one(tmp_path):
    model = quantised()
    anynpu.save_quantized(model, tmp_path)
    with torch.device("meta"):
        empty = Tiny().eval()
    assert torch.equal(anynpu.load_quantized(empty, tmp_path)(TOKENS), model(TOKENS))
    assert empty.lm_head.weight.data_ptr() == empty.embed.weight.data_ptr()
    other = quantised(seed=1)
    assert torch.equal(anynpu.load_quantized(other, tmp_path)(TOKENS), model(TOKENS))


def test_a_reordered_layer_survives(tmp_path):
    g = torch.Generator().manual_seed(0)
    order = torch.randperm(64, generator=g)
    quantized = dataclasses.replace(CONFIGS[0].quantize(torch.randn(8, 64)), input_order=order)
    model = torch.nn.Sequential(WeightQuantLinear.from_quantized(quantized))
    anynpu.save_quantized(model, tmp_path)
    loaded = anynpu.load_quantized(torch.nn.Sequential(torch.nn.Linear(64, 8, bias=False)), tmp_path)
    x = torch.randn(3, 64)
    assert torch.equal(loaded(x), model(x)) and torch.equal(loaded[0].input_order, order)


def test_saving_again_replaces_the_old_files(tmp_path):
    anynpu.save_quantized(quantised(), tmp_path)
    (tmp_path / "model-notes.txt").write_text("kept")
    second = quantised(seed=1)
    anynpu.save_quantized(second, tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 1 and (tmp_path / "model-notes.txt").exists()
    assert torch.equal(anynpu.load_quantized(tiny(), tmp_path)(TOKENS), second(TOKENS))


def test_a_failed_save_leaves_the_old_model(tmp_path, monkeypatch):
    model = quantised()
    anynpu.save_quantized(model, tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    monkeypatch.setattr("anynpu.quantization.checkpoint.json.dumps", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        anynpu.save_quantized(quantised(seed=1), tmp_path)
    assert set(before) <= {path.name for path in tmp_path.iterdir()}
    assert not list(tmp_path.glob(".*"))
    assert torch.equal(anynpu.load_quantized(tiny(), tmp_path)(TOKENS), model(TOKENS))


def test_a_save_that_is_killed_leaves_the_old_or_the_new_model(tmp_path, monkeypatch):
    old, new = quantised(), quantised(seed=1)
    folder = tmp_path / "model"
    anynpu.save_quantized(old, folder)
    moments = []

    def before(owner, name):
        original = getattr(owner, name)

        def noted(*args, **kwargs):
            moments.append(tmp_path / f"moment {len(moments)}")
            shutil.copytree(folder, moments[-1])
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, noted)

    before(os, "fsync")
    before(os, "replace")
    before(Path, "unlink")
    anynpu.save_quantized(new, folder)
    monkeypatch.undo()
    is_new = [torch.equal(anynpu.load_quantized(tiny(), moment)(TOKENS), new(TOKENS)) for moment in moments]
    assert is_new == sorted(is_new) and len(set(is_new)) == 2
    for moment, later in zip(moments, is_new, strict=True):
        expected = new if later else old
        assert torch.equal(anynpu.load_quantized(tiny(), moment)(TOKENS), expected(TOKENS))
        anynpu.save_quantized(old, moment)
        assert len(list(moment.iterdir())) == 2  # nothing is left of the one that was killed


def test_models_saved_at_the_same_time_are_read_meanwhile(tmp_path):
    model = quantised()
    expected = model(TOKENS)
    anynpu.save_quantized(model, tmp_path)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        saves = [pool.submit(anynpu.save_quantized, model, tmp_path) for _ in range(40)]
        while not all(save.done() for save in saves):
            assert torch.equal(anynpu.load_quantized(tiny(seed=1), tmp_path)(TOKENS), expected)
        for save in saves:
            save.result()
    assert torch.equal(anynpu.load_quantized(tiny(seed=1), tmp_path)(TOKENS), expected)
    assert len(list(tmp_path.iterdir())) == 2


def described(folder):
    return json.loads((folder / DESCRIPTION).read_text())


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda d: d.update(version=1), ValueError, "must be anynpu-quantized version 2"),
        (lambda d: d.update(format="other"), ValueError, "must be anynpu-quantized version 2"),
        (lambda d: d.update(tensors="../model-0123456789abcdef.safetensors"), ValueError, "tensors names no file"),
        (lambda d: d.update(tensors=3), ValueError, "tensors names no file"),
        (lambda d: d.update(tensors="model-0123456789abcdef.safetensors"), FileNotFoundError, "is missing"),
        (lambda d: d.update(layers=[]), ValueError, "must be objects"),
        (lambda d: d.pop("aliases"), ValueError, "must be objects"),
        (lambda d: d["aliases"].update(x="nowhere"), ValueError, "alias x of nowhere does not fit"),
        (lambda d: d["aliases"].update(x=["y"]), ValueError, "aliases must hold names"),
        (lambda d: d["layers"]["up"].update(bits=True), ValueError, "must have the fields"),
        (lambda d: d["layers"]["up"].update(bits="4"), ValueError, "must have the fields"),
        (lambda d: d["layers"]["up"].pop("bias"), ValueError, "must have the fields"),
        (lambda d: d["layers"]["up"].pop("kind"), ValueError, "must have a kind of "),
        (lambda d: d["layers"]["up"].update(kind="Linear"), ValueError, "must have a kind of "),
        (lambda d: d["layers"].update(up=[]), ValueError, "must have a kind of "),
        (lambda d: d["layers"]["up"].update(bits=5), ValueError, "bits must be 4 or 8"),
        (lambda d: d["layers"]["up"].update(group_size=10**9), ValueError, "group_size must be"),
        (lambda d: d["layers"]["up"].update(in_features=65), ValueError, "must have .in_features, out_features. = "),
        (lambda d: d["layers"]["down"].update(bits=8), ValueError, r"down.weight must have shape \(64, 99\)"),
        (lambda d: d["layers"]["down"].update(group_size=64), ValueError, "down.scale must have shape"),
        (lambda d: d["layers"]["up"].update(symmetric=False), ValueError, "lacks .* the first is"),
        (lambda d: d["layers"]["up"].update(bias=False), ValueError, "has .* that the model lacks"),
        (lambda d: d["layers"].update(gone=d["layers"]["up"]), ValueError, "the model has no layer 'gone'"),
        (lambda d: d["layers"].update(norm=d["layers"]["up"]), ValueError, "layer 'norm' must be a Linear"),
        (lambda d: d["layers"].pop("down"), ValueError, "lacks|has"),
    ],
)
def test_a_damaged_description_is_refused_and_changes_nothing(change, error, match, tmp_path):
    anynpu.save_quantized(quantised(), tmp_path)
    description = described(tmp_path)
    change(description)
    (tmp_path / DESCRIPTION).write_text(json.dumps(description))
    model = tiny(seed=1)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=match):
        anynpu.load_quantized(model, tmp_path)
    assert type(model.up) is torch.nn.Linear
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_damaged_files_are_refused(tmp_path):
    anynpu.save_quantized(quantised(), tmp_path)
    tensors = next(tmp_path.glob("*.safetensors"))
    whole = tensors.read_bytes()
    for damaged in (b"", whole[:100], whole[:-1], b"\xff" * 8 + whole[8:]):
        tensors.write_bytes(damaged)
        with pytest.raises(ValueError, match="is no safetensors file or damaged"):
            anynpu.load_quantized(tiny(), tmp_path)
    (tmp_path / DESCRIPTION).write_bytes(b"\xff{")
    with pytest.raises(ValueError, match="is not JSON"):
        anynpu.load_quantized(tiny(), tmp_path)
    with pytest.raises(FileNotFoundError):
        anynpu.load_quantized(tiny(), tmp_path / "nowhere")


def test_tensors_of_another_dtype_are_refused(tmp_path):
    anynpu.save_quantized(quantised(), tmp_path)
    with pytest.raises(TypeError, match="must be bfloat16, got float32"):
        anynpu.load_quantized(tiny().bfloat16(), tmp_path)


def test_what_cannot_be_saved_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no data"):
        anynpu.save_quantized(torch.nn.Linear(2, 2, device="meta"), tmp_path)

    class Stateful(torch.nn.Linear):
        def get_extra_state(self):
            return {"anything": 1}

    with pytest.raises(TypeError, match="_extra_state must be a tensor, got dict"):
        anynpu.save_quantized(Stateful(2, 2), tmp_path)


def test_quantised_model_compiles():
    model = quantised()
    compiled = torch.compile(model.up, fullgraph=True, dynamic=True, backend="aot_eager")
    x = torch.randn(4, 64)
    assert torch.equal(compiled(x), model.up(x))


@pytest.mark.parametrize(
    "config", [anynpu.W4A16(), anynpu.W8A16(symmetric=False), anynpu.W8A8(), anynpu.W4A8()], ids=str
)
def test_scales_are_float32_whatever_the_default_dtype_is(config):
    model = torch.nn.Sequential(torch.nn.Linear(64, 8))
    expected = anynpu.quantize_(copy.deepcopy(model), config).state_dict()
    torch.set_default_dtype(torch.bfloat16)
    try:
        state = anynpu.quantize_(model, config).state_dict()
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    assert state["0.scale"].dtype == torch.float32
