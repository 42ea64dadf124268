# SPDX-License-Identifier: Apache-2.0
"""Folders of other producers give the logits of the same model with weights dequantised by the producer's formula."""

from __future__ import annotations

import shutil

import checkpoint_folders as folders
import pytest
import torch
import transformers
from checkpoint_folders import logits, model_of
from safetensors.torch import load_file, save_file

import anynpu

CASES = {
    "gptq": lambda folder: folders.gptq(model_of(), folder),
    "gptq, shards and ties": lambda folder: folders.gptq(model_of(tied=True), folder, shards=3),
    "gptq, 8 bits, one group": lambda folder: folders.gptq(model_of(), folder, bits=8, group=-1),
    "gptq, act-order": lambda folder: folders.gptq(model_of("qwen3", head_dim=16), folder, act_order=True),
    "gptq_v2, asymmetric": lambda folder: folders.gptq(model_of(), folder, v2=True, symmetric=False),
    "gptq, lm_head": lambda folder: folders.gptq(model_of(tied=True, vocab_size=104), folder, skip=()),
    "gptq, biases": lambda folder: folders.gptq(model_of("qwen2"), folder, symmetric=False),
    "gptq, skipped modules": lambda folder: folders.gptq(
        model_of(), folder, skip=("lm_head", "model.layers.0.mlp.down_proj", "model.layers.1.self_attn.q_proj")
    ),
    "awq": lambda folder: folders.awq(model_of("qwen2"), folder, shards=2),
    "pack-quantized": lambda folder: folders.compressed_weights(model_of(), folder),
    "pack-quantized, asymmetric": lambda folder: folders.compressed_weights(model_of(), folder, symmetric=False),
    "pack-quantized, act-order": lambda folder: folders.compressed_weights(model_of(), folder, act_order=True),
    "pack-quantized, channels": lambda folder: folders.compressed_weights(model_of("qwen2"), folder, group=0),
    "pack-quantized, 8 bits": lambda folder: folders.compressed_weights(model_of(), folder, bits=8, symmetric=False),
    "int-quantized, 8 bits": lambda folder: folders.compressed_weights(model_of(), folder, bits=8, packed=False),
    "int-quantized, 4 bits": lambda folder: folders.compressed_weights(
        model_of(), folder, packed=False, symmetric=False, act_order=True
    ),
    "W8A8 dynamic": lambda folder: folders.compressed_int8(model_of("qwen2"), folder),
    "W8A8 naive": lambda folder: folders.compressed_int8(model_of(), folder, form="naive"),
    "W8A8 static": lambda folder: folders.compressed_int8(model_of("qwen2"), folder, static=True),
    "W8A8 static, zero point": lambda folder: folders.compressed_int8(model_of(), folder, static=True, zero=-7),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_of_the_dequantised_model(case, tmp_path):
    want = logits(CASES[case](tmp_path))
    model = anynpu.load_checkpoint(tmp_path)
    layers = [module for module in model.modules() if isinstance(module, anynpu.nn.QuantizedLinear)]
    assert len(layers) >= 12
    assert not any(tensor.is_meta for tensor in [*model.state_dict().values(), *model.buffers()])
    # Weights are the same numbers; sums of up to 96 products in float32 differ, and go through two blocks. An int8
    # activation at a border between two codes may fall on the other side.
    got = logits(model)
    tolerance = 2e-2 if "W8A8" in case else 2e-5
    assert torch.allclose(got, want, rtol=0, atol=tolerance * float(want.abs().max()))


def test_float_folders_and_dtypes(tmp_path):
    model = model_of(tied=True)
    folders.write(model, tmp_path, {}, None)
    loaded = anynpu.load_checkpoint(tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert anynpu.load_checkpoint(tmp_path, torch.bfloat16).dtype == torch.bfloat16


# What transformers renames and joins when it reads and writes them.
RENAMED = {
    **{kind: folders.MIXTURES[kind] for kind in ("ernie4_5_moe", "hunyuan_v1_moe", "phimoe", "minimax_m2", "jamba")},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt_neox": {},
}


@pytest.mark.parametrize("kind", RENAMED)
def test_float_folders_with_names_of_their_own(kind, tmp_path):
    model = model_of(kind, **RENAMED[kind])
    model.save_pretrained(tmp_path)
    assert {name for file in tmp_path.glob("*.safetensors") for name in load_file(file)} != set(model.state_dict())
    loaded = anynpu.load_checkpoint(tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    anynpu.quantize_(loaded, anynpu.W8A16()).save_pretrained(tmp_path / "quantised")
    assert torch.equal(logits(anynpu.load_checkpoint(tmp_path / "quantised")), logits(loaded))


@pytest.mark.parametrize(
    ("tensor", "sentence"),
    [
        (None, r"1 missing_keys: \['model.norm.weight'\]"),
        (torch.ones(65), r"1 mismatched_keys: .*model.norm.weight.*\[65\].*\[64\]"),
    ],
)
def test_damaged_float_folders(tensor, sentence, tmp_path):
    model_of().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors") | {"model.norm.weight": tensor}
    save_file({name: each for name, each in tensors.items() if each is not None}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=f"load_checkpoint: .*{sentence}"):
        anynpu.load_checkpoint(tmp_path)


@pytest.mark.parametrize("kind", ["gemma", "gemma2", "gemma3_text"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_buffers_of_modules_without_a_configuration(kind, dtype, tmp_path):
    """The factor of Gemma's embedding is in no file."""
    model = model_of(kind, tied=True, head_dim=16)
    model.save_pretrained(tmp_path / "float")
    expected = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "float", dtype=dtype)
    folders.gptq(model, tmp_path / "gptq")
    loaded = anynpu.load_checkpoint(tmp_path / "gptq", dtype)
    assert any(name.endswith("embed_scale") for name, _ in expected.named_buffers())
    for name, buffer in expected.named_buffers():
        torch.testing.assert_close(loaded.get_buffer(name), buffer, rtol=0, atol=0)


def test_a_buffer_that_nothing_computes_is_refused(tmp_path, monkeypatch):
    folders.gptq(model_of("gemma", tied=True, head_dim=16), tmp_path)
    monkeypatch.setattr(transformers.GemmaForCausalLM, "_init_weights", lambda *args: None)
    with pytest.raises(ValueError, match="embed_tokens.embed_scale is in no file and its module cannot compute it"):
        anynpu.load_checkpoint(tmp_path)


def test_tensors_of_a_save_that_was_stopped_are_left_alone(tmp_path):
    model = anynpu.quantize_(model_of(), anynpu.W8A16())
    model.config.save_pretrained(tmp_path)
    anynpu.save_quantized(model, tmp_path)
    (tensors,) = tmp_path.glob("*.safetensors")
    shutil.copyfile(tensors, tmp_path / "model-0123456789abcdef.safetensors")
    assert torch.equal(logits(anynpu.load_checkpoint(tmp_path)), logits(model))


def test_a_folder_of_two_models_is_refused(tmp_path):
    model = anynpu.quantize_(model_of(), anynpu.W8A16())
    anynpu.save_quantized(model, tmp_path)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"one model, got that of anynpu_quantized.json and .* in model.safetensors"):
        anynpu.load_checkpoint(tmp_path)
