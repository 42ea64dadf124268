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
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def write(path, kind, architecture="llama", embedding="F32", **options):
    """A file of a random model; rows of q and k keep the order of transformers, so it computes another model."""
    model = model_of(architecture, **options)
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
    for name, tensor in model.state_dict().items():
        module, _, suffix = name.rpartition(".")
        block, own = "", module
        if module.startswith("model.layers."):
            number, own = module.removeprefix("model.layers.").split(".", 1)
            block = f"blk.{number}."
        value = tensor.numpy()
        used = "F32" if value.ndim == 1 else embedding if own == "model.embed_tokens" else kind
        number = gguf.GGMLQuantizationType[used]
        data = value if used == "F32" else gguf.quantize(value, number)
        writer.add_tensor(f"{block}{NAMES[own]}.{suffix}", numpy.ascontiguousarray(data), raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


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
