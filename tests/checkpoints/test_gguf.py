# SPDX-License-Identifier: Apache-2.0
"""GGUF files give the logits that transformers gives with dequantised weights."""

from __future__ import annotations

import numpy
import pytest
import torch
import transformers
from checkpoint_folders import SIZES, logits, model_of

import anynpu

gguf = pytest.importorskip("gguf", reason="writes GGUF files")

NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate": "ffn_gate_inp", "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp", "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def write(path, kind, architecture="llama", embedding="F32", **options):
    """A file of a random model; rows of q and k keep the order of transformers, so it computes another model."""
    write_model(path, kind, model_of(architecture, **options), architecture, embedding)


def write_model(path, kind, model, architecture, embedding="F32"):
    """The file of a model, whose parameters become those that are written."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(SIZES["max_position_embeddings"])
    writer.add_embedding_length(SIZES["hidden_size"])
    writer.add_block_count(SIZES["num_hidden_layers"])
    writer.add_feed_forward_length(SIZES["intermediate_size"])
    writer.add_head_count(SIZES["num_attention_heads"])
    writer.add_head_count_kv(SIZES["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(model.config.vocab_size)
    if architecture.endswith("moe"):
        writer.add_expert_count(model.config.num_experts)
        writer.add_expert_used_count(model.config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(model.config.moe_intermediate_size)
        writer.add_key_length(SIZES["hidden_size"] // SIZES["num_attention_heads"])
        if architecture == "qwen2moe":
            writer.add_expert_shared_feed_forward_length(model.config.shared_expert_intermediate_size)
    for name, tensor in model.state_dict().items():
        module, _, suffix = name.rpartition(".")
        block, own = "", module
        if module.startswith("model.layers."):
            number, own = module.removeprefix("model.layers.").split(".", 1)
            block = f"blk.{number}."
        value = tensor.numpy()
        small = value.ndim == 1 or own in ("mlp.gate", "mlp.shared_expert_gate")
        used = "F32" if small else embedding if own == "model.embed_tokens" else kind
        number = gguf.GGMLQuantizationType[used]
        for part, rows in parts_of(own, suffix, value).items():
            data = rows if used == "F32" else gguf.quantize(rows, number)
            writer.add_tensor(f"{block}{part}", numpy.ascontiguousarray(data), raw_dtype=number)
        if used != "F32":
            tensor.copy_(torch.from_numpy(gguf.dequantize(gguf.quantize(value, number), number)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def parts_of(own, suffix, value):
    """Tensors of the file by their names in a block: experts are 3-D, gate and up apart."""
    if own != "mlp.experts":
        return {f"{NAMES[own]}.{suffix}": value}
    if suffix == "down_proj":
        return {"ffn_down_exps.weight": value}
    return dict(zip(("ffn_gate_exps.weight", "ffn_up_exps.weight"), numpy.split(value, 2, axis=1), strict=True))


@pytest.mark.parametrize(
    ("kind", "architecture", "embedding"),
    [
        ("Q4_0", "llama", "Q8_0"),
        ("Q4_1", "llama", "F16"),
        ("Q8_0", "llama", "F32"),
        ("Q4_1", "qwen2", "Q4_0"),
        ("F16", "llama", "F16"),
        ("BF16", "llama", "BF16"),
    ],
)
def test_logits_of_transformers(kind, architecture, embedding, tmp_path):
    write(tmp_path / "model.gguf", kind, architecture, embedding)
    want = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    model = anynpu.load_checkpoint(tmp_path / "model.gguf", torch.float32)
    layers = [module for module in model.modules() if isinstance(module, anynpu.nn.WeightQuantLinear)]
    assert len(layers) == (15 if kind.startswith("Q") else 0)
    expected = logits(want.eval())
    assert torch.allclose(logits(model), expected, rtol=0, atol=5e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(("kind", "architecture"), [("Q4_0", "qwen3moe"), ("Q8_0", "qwen2moe"), ("F16", "qwen3moe")])
def test_mixtures(kind, architecture, tmp_path):
    options = {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}
    own = {"head_dim": 16, "norm_topk_prob": True} if "3" in architecture else {"shared_expert_intermediate_size": 64}
    model = model_of(architecture.replace("moe", "_moe"), **options, **own)
    write_model(tmp_path / "model.gguf", kind, model, architecture)
    loaded = anynpu.load_checkpoint(tmp_path / "model.gguf", torch.float32)
    experts = [module for module in loaded.modules() if isinstance(module, anynpu.nn.LinearExperts)]
    assert len(experts) == (2 if kind.startswith("Q") else 0)
    want = logits(model)
    assert torch.allclose(logits(loaded), want, rtol=0, atol=5e-5 * float(want.abs().max()))


def test_to_ascend(tmp_path):
    write(tmp_path / "model.gguf", "Q4_0", vocab_size=104)
    want = logits(anynpu.load_checkpoint(tmp_path / "model.gguf"))
    anynpu.convert_checkpoint(tmp_path / "model.gguf", tmp_path / "out", "msmodelslim")
    assert torch.equal(logits(anynpu.load_checkpoint(tmp_path / "out")), want)


def test_what_is_refused(tmp_path):
    path = tmp_path / "model.gguf"
    write(path, "Q5_0")
    with pytest.raises(ValueError, match="load_checkpoint: the type of .* must be Q4_0.* got Q5_0"):
        anynpu.load_checkpoint(path)
    data = path.read_bytes()
    for damaged in (data[: len(data) // 2], data[:30], b"GGUFxxxx", b""):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="load_checkpoint: .* is no GGUF file that can be read"):
            anynpu.load_checkpoint(path)


def test_experts_that_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "model.gguf"
    model = model_of("qwen3_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, head_dim=16)
    model.config.num_experts = 5
    write_model(path, "Q4_0", model, "qwen3moe")
    with pytest.raises(ValueError, match=r"load_checkpoint: blk.0.ffn_\w+_exps.weight must hold 5 matrices, got .*4"):
        anynpu.load_checkpoint(path)
    monkeypatch.setitem(NAMES, "mlp.gate_proj", "ffn_gate_exps")  # Mixtral, which calls itself llama
    write(path, "Q4_0")
    with pytest.raises(ValueError, match="has a tensor 'blk.0.ffn_gate_exps.weight' that the model lacks"):
        anynpu.load_checkpoint(path)
