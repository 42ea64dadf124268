# SPDX-License-Identifier: Apache-2.0
"""Models of transformers that look at the weights of their linear layers themselves."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch

import anynpu
from anynpu.nn import QuantizedLinear
from anynpu.quantization import read_by_parent

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


ENCODERS = {  # class, arguments of its configuration, layers that stay float
    "Deberta": (
        "DebertaForMaskedLM",
        {**SMALL, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
        {"in_proj"},
    ),
    "MobileBert": (
        "MobileBertForMaskedLM",
        {**SMALL, "embedding_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32},
        {"dense", "decoder"},
    ),
    "Rwkv": ("RwkvForCausalLM", {**SMALL, "rescale_every": 1, "attention_hidden_size": 64}, {"output", "value"}),
    "WavLM": (
        "WavLMModel",
        {**SMALL, "conv_dim": [8], "conv_kernel": [4], "conv_stride": [2], "num_conv_pos_embedding_groups": 2,
         "num_feat_extract_layers": 1, "feat_extract_norm": "layer"},
        {"q_proj", "k_proj", "v_proj", "out_proj"},
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:quantize_. .* was tied")
@pytest.mark.parametrize("kind", ENCODERS)
def test_layers_that_other_code_reads(kind):
    name, arguments, stay = ENCODERS[kind]
    torch.manual_seed(0)
    model = getattr(transformers, name)(getattr(transformers, f"{kind}Config")(**arguments)).eval()
    inputs = torch.randn(2, 400) if kind == "WavLM" else TOKENS
    expected = copy.deepcopy(model)
    anynpu.quantize_(model, anynpu.W8A16())
    floats = {each for each, layer in model.named_modules() if type(layer) is torch.nn.Linear}
    assert {each.rpartition(".")[2] for each in floats} >= stay
    for each, layer in model.named_modules():
        if isinstance(layer, QuantizedLinear):
            expected.get_submodule(each).weight = torch.nn.Parameter(layer.dequantized())
    with torch.inference_mode():
        got, want = (each(inputs)[0] for each in (model, expected))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_the_list_names_what_transformers_has():
    """A name that is misspelt would let its layer be quantised."""
    sources = Path(transformers.__file__).parent.glob("models/*/modeling_*.py")
    text = "\n".join(path.read_text() for path in sources)
    classes = set(re.findall(r"^class (\w+)\(", text, re.MULTILINE))
    named = set().union(*read_by_parent._PARENTS.values())
    assert named - classes == set()
    for layer in read_by_parent._PARENTS:
        assert re.search(rf"self\.{layer} = \(?\s*nn\.Linear\(", text), layer


def test_weights_cannot_be_tied_again():
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**SMALL, "tie_word_embeddings": True}))
    with pytest.warns(UserWarning, match="was tied to"):
        anynpu.quantize_(model, anynpu.W8A16())
    expected = logits(model)
    with pytest.raises(TypeError, match="WeightQuantLinear: weight is quantised and cannot be a parameter"):
        model.tie_weights()
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int8], ids=str)
def test_type_of_a_module_casts_no_codes(dtype):
    """Unlike ``to(dtype)``, torch's ``type(dtype)`` casts integers too."""
    linear = [torch.nn.Linear(64, 48) for _ in range(4)]
    configs = anynpu.W4A16(group_size=32), anynpu.W8A8(), anynpu.W4A8(group_size=32), anynpu.W8A8Compressed()
    model = torch.nn.Sequential(*(config.layer(each, "") for each, config in zip(linear, configs, strict=True)))
    model.append(anynpu.nn.QuantMoE(hidden=48, intermediate=32, experts=2, k=1, bits=4))
    for layer in model[:4]:
        layer.prepack()
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = model.type(dtype).state_dict()
    for name, tensor in expected.items():
        assert state[name].dtype == tensor.dtype and torch.equal(state[name], tensor), name
