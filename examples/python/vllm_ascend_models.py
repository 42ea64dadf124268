# SPDX-License-Identifier: Apache-2.0
"""Small models with random weights in vLLM, with vllm-ascend, beside transformers: ``anynpu run FILE NAME [SCHEME]``.

It prints how far the log-probabilities of the tokens of a prompt and of its answer differ. With a scheme vLLM loads a
folder that ``anynpu.convert_checkpoint`` wrote for it, and transformers has the same weights as floats, activations
too. See docs/vllm_ascend.md for what must be installed.
"""

import copy
import json
import os
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

import anynpu

ATTENTION = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
LATENT = {
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "topk_group": 1,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 128}
MODELS = {
    "qwen2": ATTENTION,
    "qwen3": ATTENTION,
    "mixtral": {**ATTENTION, "num_local_experts": 8, "num_experts_per_tok": 2},
    "qwen3_moe": {**ATTENTION, **EXPERTS, "num_experts": 8, "norm_topk_prob": True},
    "deepseek_v2": {**LATENT, **EXPERTS, "q_lora_rank": None, "n_group": 1, "topk_method": "greedy"},
    "deepseek_v3": {
        **LATENT,
        **EXPERTS,
        "q_lora_rank": 192,
        "n_group": 2,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
    },
}
MODELS["deepseek_v32"] = MODELS["deepseek_v3"]  # with sparse attention, which takes all of so few keys
INDEXER = {"index_n_heads": 8, "index_head_dim": 128, "index_topk": 2048}
SIZES = {
    "vocab_size": 4096, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
    "max_position_embeddings": 512, "tie_word_embeddings": False, "initializer_range": 0.08,
}  # fmt: skip


# What quantises linear layers, and experts.
SCHEMES = {
    "W8A16": (anynpu.W8A16(), None),
    "W8A16-C8": (anynpu.W8A16(), None),  # with an INT8 KV cache
    "W4A16": (anynpu.W4A16(64), None),
    "W8A8": (anynpu.W8A8(), anynpu.W8A8()),
    "W4A8": (anynpu.W8A8(), anynpu.W4A8(0)),
    "W4A8-groups": (anynpu.W8A8(), anynpu.W4A8(64)),
}
# Rounded activations would now and then choose another expert, whose share is a jump: quantised models take them all.
EVERY_EXPERT = {"num_experts_per_tok": 8, "n_group": 1}
STATIC = "W8A8-static"  # linear layers whose activations get the scales of the prompt
FLOAT = ("lm_head", "kv_b_proj")


def on_grid(weight: torch.Tensor, config: anynpu.W8A8 | anynpu.W4A8 | anynpu.W4A16 | anynpu.W8A16) -> torch.Tensor:
    """What quantisation makes of the weight of a layer, or of experts, with scales that bfloat16 holds."""
    rounding = anynpu.W4A8(config.group_size) if config.bits == 4 else anynpu.W8A8()
    codes, scale = rounding.quantize_experts(weight.reshape(-1, *weight.shape[-2:]))
    groups = codes.float().unflatten(-1, (scale.shape[-1], -1)) * scale.bfloat16().float().unsqueeze(-1)
    return groups.reshape(weight.shape)


def quantized(model: torch.nn.Module, scheme: str, prompt: list[int]) -> torch.nn.Module:
    """A quantised copy of the model, which itself gets the weights of the copy."""
    linear, experts = SCHEMES.get(scheme, (anynpu.W8A8(), None))

    def is_linear(module: torch.nn.Module, name: str) -> bool:
        return type(module) is torch.nn.Linear and name.rpartition(".")[2] not in FLOAT

    for name, module in model.named_modules():
        if experts and hasattr(module, "gate_up_proj"):
            module.gate_up_proj.data = on_grid(module.gate_up_proj, experts)
            module.down_proj.data = on_grid(module.down_proj, experts)
        elif is_linear(module, name):
            module.weight.data = on_grid(module.weight, experts if experts and "shared_expert" in name else linear)
    if scheme == STATIC:
        linear = anynpu.W8A8(activations=anynpu.calibrate_activations(model, [torch.tensor([prompt])]))
    result = copy.deepcopy(model)
    if experts:
        anynpu.quantize_(result, experts, filter_fn=lambda module, name: type(module) is not torch.nn.Linear)
    return anynpu.quantize_(result, linear, filter_fn=is_linear)


def add_indexers(folder: Path) -> None:
    """Makes a folder of DeepSeek-V3 one of DeepSeek-V3.2, whose layers have an index of keys."""
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["DeepseekV32ForCausalLM"], "model_type": "deepseek_v32", **INDEXER}
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    heads, size, hidden = INDEXER["index_n_heads"], INDEXER["index_head_dim"], config["hidden_size"]
    shapes = {
        "wq_b.weight": (heads * size, config["q_lora_rank"]), "wk.weight": (size, hidden), "k_norm.weight": (size,),
        "k_norm.bias": (size,), "weights_proj.weight": (heads, hidden),
    }  # fmt: skip
    for layer in range(config["num_hidden_layers"]):
        for name, shape in shapes.items():
            weight = config["initializer_range"] * torch.randn(shape)
            weights[f"model.layers.{layer}.self_attn.indexer.{name}"] = weight.bfloat16()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def expected(model: torch.nn.Module, tokens: list[int]) -> list[float]:
    """Log-probabilities by transformers in float32."""
    with torch.no_grad():
        scores = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
    return [float(scores[place, token]) for place, token in enumerate(tokens[1:])]


def measured(folder: Path, prompt: list[int], quantization: str | None) -> tuple[list[int], list[float]]:
    """The tokens of the prompt and of vLLM's answer, and their log-probabilities. The prompt takes two steps."""
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    llm = LLM(
        str(folder), quantization=quantization, dtype="bfloat16", skip_tokenizer_init=True, enforce_eager=True,
        max_model_len=256, max_num_seqs=4, max_num_batched_tokens=32, gpu_memory_utilization=0.1,
    )  # fmt: skip
    options = SamplingParams(
        temperature=0, max_tokens=8, prompt_logprobs=0, logprobs=0, ignore_eos=True, detokenize=False
    )
    (result,) = llm.generate(TokensPrompt(prompt_token_ids=prompt), options)
    (answer,) = result.outputs
    tokens = prompt + list(answer.token_ids)
    scores = [*result.prompt_logprobs[1:], *answer.logprobs]
    return tokens, [each[token].logprob for each, token in zip(scores, tokens[1:], strict=True)]


def main(name: str, scheme: str | None = None) -> None:
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    transformers.set_seed(0)
    prompt = torch.randint(3, SIZES["vocab_size"], (40,)).tolist()
    routing = EVERY_EXPERT if scheme and "num_experts_per_tok" in MODELS[name] else {}
    config = AutoConfig.for_model(name.replace("v32", "v3"), **SIZES, **MODELS[name] | routing)
    model = AutoModelForCausalLM.from_config(config).to(torch.bfloat16).eval()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "model")
        if scheme is None:
            model.save_pretrained(folder)
            if name == "deepseek_v32":
                add_indexers(folder)
        else:
            anynpu.save_quantized(quantized(model.float(), scheme, prompt), Path(temporary, "quantized"))
            model.config.architectures = [type(model).__name__]  # as save_pretrained notes it
            model.config.save_pretrained(Path(temporary, "quantized"))
            if scheme.endswith("C8"):
                anynpu.calibrate_kv(model, [torch.tensor(prompt)]).save(Path(temporary, "quantized"))
            anynpu.convert_checkpoint(Path(temporary, "quantized"), folder, "msmodelslim")
        tokens, got = measured(folder, prompt, None if scheme is None else "ascend")
    differences = torch.tensor(got) - torch.tensor(expected(model.float(), tokens))
    mean = differences.square().mean().sqrt()
    what = name if scheme is None else f"{name} {scheme}"
    print(f"{what}: largest difference {differences.abs().max():.3f}, root of the mean square {mean:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
