# SPDX-License-Identifier: Apache-2.0
"""Models of transformers that look at the weights of their linear layers themselves."""

from __future__ import annotations

import pytest
import torch

import anynpu
from anynpu.nn import QuantizedLinear

transformers = pytest.importorskip("transformers", reason="needs transformers")

SMALL = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}
T5 = {"vocab_size": 64, "d_model": 64, "d_ff": 96, "d_kv": 16, "num_layers": 1, "num_heads": 4}
KINDS = {  # the arguments of their configuration, and the layers that stay float
    "HunYuanMoEV1": ({**SMALL, "num_experts": 2, "moe_topk": 1, "head_dim": 16}, {"wg"}),
    "Jamba": ({**SMALL, "num_experts": 2, "mamba_d_state": 8, "use_mamba_kernels": False}, {"dt_proj"}),
    "Mamba": ({"vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 2, "state_size": 8}, {"dt_proj", "lm_head"}),
    "Mamba2": ({**SMALL, "num_heads": 8, "head_dim": 16, "n_groups": 2, "state_size": 8}, {"lm_head"}),
    "T5": ({**T5, "decoder_start_token_id": 0}, set()),
}
TOKENS = torch.arange(24).reshape(2, 12)


def build(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    auto = transformers.AutoModelForSeq2SeqLM if kind == "T5" else transformers.AutoModelForCausalLM
    return auto.from_config(getattr(transformers, f"{kind}Config")(**KINDS[kind][0])).eval()


def logits(model: torch.nn.Module) -> torch.Tensor:
    inputs = {"decoder_input_ids": TOKENS} if model.config.is_encoder_decoder else {}
    with torch.inference_mode():
        return model(TOKENS, **inputs, use_cache=False).logits


@pytest.mark.filterwarnings("ignore:quantize_. lm_head.weight was tied")
@pytest.mark.parametrize("kind", KINDS)
def test_computes_with_the_quantised_weights(kind):
    quantised, expected = anynpu.quantize_(build(kind), anynpu.W4A16(group_size=32)), build(kind)
    for name, layer in quantised.named_modules():
        if isinstance(layer, QuantizedLinear):
            expected.get_submodule(name).weight = torch.nn.Parameter(layer.dequantized())
    left = {name.rpartition(".")[2] for name, layer in quantised.named_modules() if type(layer) is torch.nn.Linear}
    assert left == KINDS[kind][1]
    torch.testing.assert_close(logits(quantised), logits(expected), rtol=1e-4, atol=1e-4)
    half = logits(quantised.bfloat16()).float()
    assert (half - logits(expected)).norm() < 2.0**-4 * half.norm()  # bfloat16 rounds to 2**-9


@pytest.mark.filterwarnings("ignore:quantize_. lm_head.weight was tied")
@pytest.mark.parametrize("kind", KINDS)
def test_compressed_weights_give_the_same(kind):
    result, expected = (logits(anynpu.quantize_(build(kind), each())) for each in (anynpu.W8A8Compressed, anynpu.W8A8))
    assert torch.equal(result, expected)


def test_weights_cannot_be_tied_again():
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**SMALL, "tie_word_embeddings": True}))
    with pytest.warns(UserWarning, match="was tied to"):
        anynpu.quantize_(model, anynpu.W8A16())
    expected = logits(model)
    with pytest.raises(TypeError, match="WeightQuantLinear: weight is quantised and cannot be a parameter"):
        model.tie_weights()
    assert torch.equal(logits(model), expected)
