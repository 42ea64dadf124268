# SPDX-License-Identifier: Apache-2.0
"""Folders that are damaged, or hold what has no place in a model, are refused with a sentence that names it."""

from __future__ import annotations

import json
import pickle

import checkpoint_folders as folders
import pytest
import torch
from checkpoint_folders import model_of
from safetensors.torch import load_file, save_file

import anynpu

LAYER = "model.layers.0.mlp.up_proj"


@pytest.fixture
def folder(tmp_path):
    folders.gptq(model_of(), tmp_path / "model")
    return tmp_path / "model"


def change(folder, **changes):
    """Replaces tensors by their names with `/` for `.`; None removes one."""
    tensors = load_file(folder / "model.safetensors") | {
        name.replace("/", "."): value for name, value in changes.items()
    }
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(tensors, folder / "model.safetensors")


def configure(folder, part=None, **changes):
    config = json.loads((folder / "config.json").read_text())
    (config if part is None else config[part]).update(changes)
    (folder / "config.json").write_text(json.dumps(config))


def refused(folder, sentence, kind=ValueError):
    with pytest.raises(kind, match=sentence) as caught:
        anynpu.load_checkpoint(folder)
    assert str(caught.value).startswith("load_checkpoint: ")


def own(name):
    return f"{LAYER}.{name}".replace(".", "/")


@pytest.mark.parametrize(
    ("changes", "sentence", "kind"),
    [
        ({own("scales"): None}, f"layer {LAYER}: layer: tensors must be .* missing scales", ValueError),
        ({own("other"): torch.ones(1)}, rf"layer {LAYER}: .* among qweight.*got \['other'\]", ValueError),
        ({own("qweight"): torch.zeros(8, 90, dtype=torch.int32)}, f"layer {LAYER}: .*N must be a multiple", ValueError),
        ({own("qweight"): torch.zeros(8, 96)}, f"layer {LAYER}: .*qweight must be int32, got float32", TypeError),
        ({own("scales"): torch.full((2, 96), torch.inf)}, f"layer {LAYER}: .*scales must be finite", ValueError),
        ({own("g_idx"): torch.full((64,), 7, dtype=torch.int32)}, f"layer {LAYER}: .*group of g_idx", ValueError),
        ({own("g_idx"): torch.full((64,), -9, dtype=torch.int32)}, f"layer {LAYER}: .*group of g_idx", ValueError),
        ({"model/norm/weight": None}, r"lack 1 tensors of the model, the first is \['model.norm.weight'\]", ValueError),
        (
            {"model/norm/weight": torch.ones(65)},
            r"model.norm.weight must have shape \(64,\) .* got \(65,\)",
            ValueError,
        ),
        ({"model/norm/weight": torch.ones(64, dtype=torch.int8)}, "model.norm.weight must be float32", TypeError),
        ({"model/norm/strange": torch.ones(1)}, "tensors that the model lacks, the first is .*strange", ValueError),
        ({"model/norm/qweight": torch.ones(1)}, "layer model.norm of the files must be a Linear", ValueError),
        ({"model/layers/9/x/qweight": torch.ones(1)}, "layer 'model.layers.9.x' that the model lacks", ValueError),
    ],
)
def test_tensors(folder, changes, sentence, kind):
    change(folder, **changes)
    refused(folder, sentence, kind)


@pytest.mark.parametrize(
    ("part", "changes", "sentence"),
    [
        ("quantization_config", {"bits": 3}, "bits must be 4 or 8, got 3"),
        ("quantization_config", {"bits": 8}, "layer model.layers.0.mlp.down_proj"),
        ("quantization_config", {"bits": "4"}, "bits must be of type int, got '4'"),
        ("quantization_config", {"group_size": 64}, "scales must have ceil"),
        ("quantization_config", {"checkpoint_format": "marlin"}, "checkpoint_format must be one of"),
        ("quantization_config", {"quant_method": "magic"}, "quant_method must be one of gptq, awq, .* got 'magic'"),
        ("quantization_config", {"quant_method": ["gptq"]}, "quant_method must be one of"),
        (None, {"hidden_size": 128}, "by config.json"),
        (None, {"hidden_size": "big"}, "config.json describes no language model"),
        (None, {"model_type": "unheard"}, "model_type of config.json must be one that transformers knows"),
        (None, {"num_hidden_layers": 10**9}, "num_hidden_layers of config.json must be at most"),
        (None, {"text_config": {"num_hidden_layers": 400}}, "num_hidden_layers of config.json must be at most"),
        (None, {"num_hidden_layers": 3}, "lack"),
        (None, {"attention_bias": True}, "must have a bias by config.json, the files have none"),
        (None, {"quantization_config": 4}, "quantization_config must be an object"),
    ],
)
def test_configurations(folder, part, changes, sentence):
    configure(folder, part, **changes)
    refused(folder, sentence)


@pytest.mark.parametrize("name", ["model/norm/weight", own("weight")])
def test_integers_in_the_place_of_floats(name, tmp_path):
    """transformers would take them for the values."""
    model = model_of()
    model.save_pretrained(tmp_path)
    change(tmp_path, **{name: torch.ones_like(model.state_dict()[name.replace("/", ".")], dtype=torch.int8)})
    refused(tmp_path, rf"{name.replace('/', '.')} must be of floats .* got I8", TypeError)


def test_layers_by_another_name(folder):
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_layer": 400}))
    refused(folder, "num_hidden_layers of config.json must be at most the number of tensors, .* got 400")


def test_labels_are_not_counted(folder):
    """transformers would make a name for each, however many a configuration has."""
    configure(folder, num_labels=5)
    assert anynpu.load_checkpoint(folder).config.num_labels == 2


def test_buffers_beyond_memory(tmp_path):
    folders.gptq(model_of("gpt_neox"), tmp_path)
    rotary = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1e15}
    configure(tmp_path, rope_parameters=rotary)
    refused(tmp_path, "config.json makes no buffers of gpt_neox.rotary_emb: ")


def test_truncated_files(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    refused(folder, "no safetensors file or damaged")
    (folder / "config.json").write_text("{")
    refused(folder, "config.json is not JSON")


def test_what_is_missing(folder):
    with pytest.raises(FileNotFoundError, match="is no folder and no .gguf file"):
        anynpu.load_checkpoint(folder / "nothing")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="holds no safetensors file"):
        anynpu.load_checkpoint(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="load_checkpoint: .*config.json is missing"):
        anynpu.load_checkpoint(folder)


def test_pickles_are_not_read(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    with pytest.raises(FileNotFoundError, match="pytorch_model.bin may be a pickle"):
        anynpu.load_checkpoint(folder)


@pytest.mark.parametrize("file", ["../model.safetensors", "/etc/model.safetensors", "a/b.safetensors", "model.bin", 7])
def test_an_index_names_files_of_its_folder(folder, file):
    index = {"weight_map": dict.fromkeys(load_file(folder / "model.safetensors"), "model.safetensors")}
    index["weight_map"]["model.norm.weight"] = file
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, "must name a .safetensors file of its folder for 'model.norm.weight'")


def test_an_index_lists_what_its_files_hold(folder):
    names = set(load_file(folder / "model.safetensors"))
    index = {"weight_map": dict.fromkeys(names - {"model.norm.weight"}, "model.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, r"must list the tensors of its files, got other names: \['model.norm.weight'\]")


def test_tied_tensors_are_equal(tmp_path):
    folders.gptq(model_of(tied=True), tmp_path)
    change(tmp_path, **{"lm_head/weight": torch.zeros(folders.VOCABULARY, folders.HIDDEN)})
    refused(tmp_path, "must equal .* to which config.json ties it")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"format": "marlin-24"}, "format must be one of"),
        ({"quantization_status": "frozen"}, "quantization_status must be compressed, got 'frozen'"),
        ({"config_groups": {}}, "config_groups must name a target for model.layers.0"),
        ({"config_groups": {"group_0": {"targets": ["re:.*q_proj"]}}}, "config_groups must name a target"),
        ({"config_groups": {"group_0": {"targets": ["re:("]}}}, "targets: '\\(' must be a regular expression"),
        ({"config_groups": {"group_0": {"targets": ["re:(.|..|...)*[!?]"]}}}, "takes more than a second to match"),
        ({"config_groups": {"group_0": {"targets": ["Linear"]}}}, "weights must be of type dict"),
    ],
)
def test_configurations_of_compressed_tensors(tmp_path, changes, sentence):
    folders.compressed_weights(model_of(), tmp_path)
    configure(tmp_path, "quantization_config", **changes)
    with pytest.raises((TypeError, ValueError), match=sentence):
        anynpu.load_checkpoint(tmp_path)


def test_int8_layers_that_have_no_place(tmp_path):
    folders.compressed_int8(model_of("qwen2"), tmp_path, static=True, zero=3)
    refused(tmp_path, "layer model.layers.0.self_attn.k_proj: layer: bias must be absent beside input_zero_point = 3")
    folders.compressed_int8(model_of(), tmp_path)
    change(tmp_path, **{own("weight_zero_point"): torch.ones(96, 1, dtype=torch.int8)})
    refused(tmp_path, f"layer {LAYER}: layer: weight_zero_point of a layer with int8 activations must be 0")
    folders.compressed_int8(model_of(), tmp_path, static=True, zero=3)
    change(tmp_path, **{own("input_zero_point"): torch.tensor([torch.inf])})
    refused(tmp_path, f"layer {LAYER}: .*input_offset must be a whole number in .* got inf")
    folders.compressed_int8(model_of(), tmp_path, static=True)
    change(tmp_path, **{own("input_scale"): torch.tensor([0.0])})
    refused(tmp_path, f"layer {LAYER}: .*input_scale must be positive and finite")
