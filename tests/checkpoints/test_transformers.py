# SPDX-License-Identifier: Apache-2.0
"""``save_pretrained`` and ``from_pretrained`` of transformers keep quantised layers, and quantise float folders."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from checkpoint_folders import MIXTURES, VOCABULARY, compressed_int8, gptq, logits, mixture_of, model_of
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BertConfig,
    T5Config,
)

import anynpu
from anynpu.nn import LinearExperts, QuantLinear, QuantMoE, RoutedExperts, WeightQuantLinear

CONFIGS = [
    anynpu.W4A16(group_size=32),
    anynpu.W4A16(group_size=0, symmetric=False),
    anynpu.W8A16(),
    anynpu.W8A8(),
    anynpu.W8A8Compressed(granularity="tensor"),
    anynpu.W4A8(group_size=32),
]
NAMES = [str(config) for config in CONFIGS]
BLOCKS = ("mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v2", "deepseek_v3")


def loaded(folder, auto=AutoModelForCausalLM, **options):
    """The model of a folder, all of whose tensors have their place."""
    model, found = auto.from_pretrained(folder, output_loading_info=True, **options)
    assert not any(found.values()), found
    return model


def require_same(model, expected):
    kinds = [{name: type(each) for name, each in one.named_modules()} for one in (model, expected)]
    assert kinds[0] == kinds[1]
    assert torch.equal(logits(model), logits(expected))


@pytest.mark.filterwarnings("ignore:quantize_. lm_head.weight was tied")
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
def test_a_saved_model(config, tied, tmp_path):
    model = anynpu.quantize_(model_of(tied=tied), config)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    require_same(loaded(tmp_path), model)
    require_same(anynpu.load_checkpoint(tmp_path), model)


@pytest.mark.filterwarnings("ignore:quantize_. lm_head.weight was tied")
@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
def test_a_float_folder(config, tmp_path):
    model = model_of(tied=True)
    model.save_pretrained(tmp_path / "float")
    method = anynpu.AnynpuConfig(config, skip=("q_proj",))
    quantised = loaded(tmp_path / "float", quantization_config=method)
    require_same(quantised, anynpu.quantize_(model, config, skip=("q_proj",)))
    quantised.save_pretrained(tmp_path / "saved")
    require_same(loaded(tmp_path / "saved"), model)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        *((kind, anynpu.W4A16(group_size=32)) for kind in MIXTURES),
        *((kind, config) for kind in BLOCKS for config in (anynpu.W8A8(), anynpu.W4A8(group_size=32))),
    ],
    ids=str,
)
def test_mixtures(kind, config, tmp_path):
    model = anynpu.quantize_(model_of(kind, **MIXTURES[kind]), config, skip=("lm_head",))
    experts = any(isinstance(module, QuantMoE) for module in model.modules())
    assert experts != isinstance(config, anynpu.W4A16)
    model.save_pretrained(tmp_path)
    require_same(loaded(tmp_path), model)


@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral"])
def test_folders_with_int8_activations(kind, tmp_path):
    compressed_int8(mixture_of(kind), tmp_path / "int8")
    model = anynpu.load_checkpoint(tmp_path / "int8")
    assert any(isinstance(module, RoutedExperts) for module in model.modules())
    model.save_pretrained(tmp_path / "saved")
    require_same(loaded(tmp_path / "saved"), model)


@pytest.mark.parametrize("kind", ["llama", "qwen3_moe", "mixtral"])
def test_folders_of_gptq(kind, tmp_path):
    source = model_of() if kind == "llama" else mixture_of(kind)
    gptq(source, tmp_path / "gptq", act_order=True)
    model = anynpu.load_checkpoint(tmp_path / "gptq")
    assert any(isinstance(module, LinearExperts) for module in model.modules()) == (kind != "llama")
    model.save_pretrained(tmp_path / "saved")
    require_same(loaded(tmp_path / "saved"), model)


@pytest.mark.filterwarnings("ignore:quantize_. lm_head.weight was tied")
@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
def test_encoders_and_decoders(config, tmp_path):
    """T5 initialises the weights of its layers by itself."""
    t5 = T5Config(vocab_size=64, d_model=64, d_ff=96, d_kv=16, num_layers=1, num_heads=4, decoder_start_token_id=0)
    model = anynpu.quantize_(AutoModelForSeq2SeqLM.from_config(t5).eval(), config)
    model.save_pretrained(tmp_path)
    tokens = torch.arange(8).reshape(1, 8)
    with torch.inference_mode():
        got, want = (
            each(tokens, decoder_input_ids=tokens).logits for each in (loaded(tmp_path, AutoModelForSeq2SeqLM), model)
        )
    assert torch.equal(got, want)


@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
def test_a_head_for_other_labels(config, tmp_path):
    bert = BertConfig(vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=1, num_attention_heads=4)
    bert.num_labels = 8
    model = anynpu.quantize_(AutoModelForSequenceClassification.from_config(bert).eval(), config)
    model.save_pretrained(tmp_path)
    auto, tokens = AutoModelForSequenceClassification, torch.arange(8).reshape(1, 8)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        auto.from_pretrained(tmp_path, num_labels=3)
    other = auto.from_pretrained(tmp_path, num_labels=3, ignore_mismatched_sizes=True)
    assert type(other.classifier) is torch.nn.Linear and other.classifier.weight.requires_grad
    with torch.inference_mode():
        assert torch.equal(*(each.bert(tokens).last_hidden_state for each in (other, model)))
        assert other(tokens).logits.shape == (1, 3)


def test_scales_stay_float32(tmp_path):
    model = anynpu.quantize_(model_of(), anynpu.W4A16(group_size=32))
    model.save_pretrained(tmp_path)
    expected = model.bfloat16().state_dict()  # which casts no scales
    assert {tensor.dtype for tensor in expected.values()} == {torch.int32, torch.float32, torch.bfloat16}
    for half in (loaded(tmp_path, dtype=torch.bfloat16), anynpu.load_checkpoint(tmp_path, torch.bfloat16)):
        state = half.state_dict()
        assert state.keys() == expected.keys()
        for name, tensor in expected.items():
            assert state[name].dtype == tensor.dtype and torch.equal(state[name], tensor), name


def test_a_part_of_a_model(tmp_path):
    """Names in the files of a base model, and of a model that has one, lack or have its prefix."""
    model = model_of()
    base = anynpu.quantize_(model.model, anynpu.W8A8())
    model.save_pretrained(tmp_path / "whole")
    require_same(loaded(tmp_path / "whole"), model)
    read = AutoModel.from_pretrained(tmp_path / "whole")
    assert torch.equal(*(each(torch.arange(5)[None]).last_hidden_state for each in (read, base)))


def test_layers_of_two_configurations(tmp_path):
    model = anynpu.quantize_(model_of(), anynpu.W4A16(group_size=32), skip=("lm_head",))
    anynpu.quantize_(model, anynpu.W8A8())
    model.save_pretrained(tmp_path)
    read = loaded(tmp_path)
    assert isinstance(read.lm_head, QuantLinear) and isinstance(read.model.layers[0].mlp.up_proj, WeightQuantLinear)
    require_same(read, model)


def test_a_folder_that_is_written_again(tmp_path):
    anynpu.quantize_(model_of(), anynpu.W8A8()).save_pretrained(tmp_path, max_shard_size="40KB")
    model = anynpu.quantize_(model_of("qwen2"), anynpu.W8A8())
    model.save_pretrained(tmp_path)
    assert list(tmp_path.glob("*.index.json"))  # which transformers leaves, and does not read
    require_same(anynpu.load_checkpoint(tmp_path), model)


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_layers_that_were_replaced_one_by_one(kind, tmp_path):
    model = model_of(kind, **MIXTURES.get(kind, {}))
    anynpu.quantize_(model.model.layers[0], anynpu.W4A8(group_size=32))
    model.model.layers[1].self_attn.o_proj = anynpu.quantize_(model.model.layers[1].self_attn.o_proj, anynpu.W8A16())
    model.save_pretrained(tmp_path)
    require_same(loaded(tmp_path), model)
    model.model.save_pretrained(tmp_path / "base")
    assert torch.equal(
        loaded(tmp_path / "base", AutoModel)(torch.arange(5)[None]).last_hidden_state,
        model.model(torch.arange(5)[None]).last_hidden_state,
    )


def test_layers_on_the_disk(tmp_path):
    model_of().save_pretrained(tmp_path / "float")
    model = anynpu.quantize_(model_of(), anynpu.W8A8())
    model.save_pretrained(tmp_path / "saved")
    places = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "model.layers.0", "lm_head"), "cpu")
    options = {"device_map": {**places, "model.layers.1": "disk"}, "offload_folder": tmp_path / "offloaded"}
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", **options)
    assert torch.equal(logits(read), logits(model))
    with pytest.raises(ValueError, match=r"AnynpuConfig: device_map must .* got \['model.layers.1'\] there"):
        AutoModelForCausalLM.from_pretrained(
            tmp_path / "float", quantization_config=anynpu.AnynpuConfig(anynpu.W8A8()), **options
        )


def test_float_models_are_not_described(tmp_path):
    model = model_of()
    head = model.lm_head
    model.lm_head = anynpu.quantize_(head, anynpu.W8A16())
    model.save_pretrained(tmp_path)
    model.lm_head = head
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    require_same(loaded(tmp_path), model)


def test_layers_beside_those_of_another_method_are_not_saved(tmp_path):
    model = anynpu.quantize_(model_of(), anynpu.W8A16())
    model.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    with pytest.raises(ValueError, match="save_pretrained: .* anynpu's beside those of gptq"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:quantize_. lm_head.weight was tied")
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("config", CONFIGS, ids=NAMES)
def test_a_quantised_output_layer_keeps_its_size(config, tied):
    model = anynpu.quantize_(model_of(tied=tied), config)
    before = logits(model)
    assert model.resize_token_embeddings(VOCABULARY) is model.resize_token_embeddings() is model.model.embed_tokens
    for sizes in ((VOCABULARY + 1,), (None, 64), (VOCABULARY, 2)):
        with pytest.raises(ValueError, match="resize_token_embeddings: new_num_tokens must stay 99, .* resize before"):
            model.resize_token_embeddings(*sizes)
    assert torch.equal(logits(model), before)


def test_a_float_output_layer_is_resized():
    model = anynpu.quantize_(model_of(tied=True), anynpu.W8A16(), skip=("lm_head",))
    model.resize_token_embeddings(VOCABULARY + 4)
    assert logits(model).shape[-1] == VOCABULARY + 4


@pytest.mark.parametrize(
    "imports",
    [
        "anynpu, transformers",
        "transformers.quantizers.auto, anynpu",
        "transformers.modeling_utils, anynpu",
        "anynpu, sys; sys.meta_path[0].find_spec('transformers.modeling_utils', None); import transformers",
    ],
)
def test_import_is_enough(imports, tmp_path):
    anynpu.quantize_(model_of(), anynpu.W8A16()).save_pretrained(tmp_path)
    code = (
        f"import {imports}\n"
        f"model = transformers.AutoModelForCausalLM.from_pretrained({str(tmp_path)!r})\n"
        "assert isinstance(model.lm_head, anynpu.nn.WeightQuantLinear), model\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_import_loads_no_transformers():
    code = "import anynpu, sys; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


LAYER = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({f"{LAYER}.scale": None}, "1 missing_keys"),
        ({"extra": torch.zeros(1)}, "1 unexpected_keys"),
        ({f"{LAYER}.scale": torch.ones(3)}, "mismatch"),
        ({f"{LAYER}.input_scale": -torch.ones(1)}, "input_scale must be positive and finite"),
    ],
)
def test_damaged_tensors(changes, sentence, tmp_path):
    model = model_of()
    scales = anynpu.calibrate_activations(model, [torch.arange(5)[None]])
    anynpu.quantize_(model, anynpu.W8A8(activations=scales)).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors") | changes
    save_file({name: each for name, each in tensors.items() if each is not None}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=f"load_checkpoint: .*{sentence}"):
        anynpu.load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"kind": "Linear"}, "must have a kind of"),
        ({"in_features": 32}, r"must have \(in_features, out_features\)"),
        ({"more": 1}, "must have the fields"),
    ],
)
def test_damaged_descriptions(change, sentence, tmp_path):
    anynpu.quantize_(model_of(), anynpu.W8A8()).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"]["layers"][LAYER] |= change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=sentence):
        anynpu.load_checkpoint(tmp_path)
    with pytest.raises(ValueError, match=sentence):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_configurations():
    with pytest.raises(TypeError, match=r"AnynpuConfig: config must be a configuration such as W4A16"):
        anynpu.AnynpuConfig()
    with pytest.raises(TypeError, match=r"AnynpuConfig: layers must be an object"):
        anynpu.AnynpuConfig(layers=[])
    config = anynpu.AnynpuConfig(anynpu.W4A16(), skip=("lm_head",))
    assert repr(config) == "AnynpuConfig(W4A16(group_size=128, symmetric=True), skip=('lm_head',))"
