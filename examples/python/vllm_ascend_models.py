# SPDX-License-Identifier: Apache-2.0
"""Small models with random weights in vLLM, with vllm-ascend, beside transformers: ``anynpu run FILE NAME``.

It prints how far the log-probabilities of a prompt's tokens differ. See docs/vllm_ascend.md for what must be installed.
"""

import os
import sys
import tempfile

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

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
SIZES = {
    "vocab_size": 4096, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
    "max_position_embeddings": 512, "tie_word_embeddings": False, "initializer_range": 0.08,
}  # fmt: skip


def expected(folder: str, prompt: list[int]) -> list[float]:
    """Log-probabilities by transformers in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        scores = model(torch.tensor([prompt])).logits[0].log_softmax(-1)
    return [float(scores[place, token]) for place, token in enumerate(prompt[1:])]


def measured(folder: str, prompt: list[int]) -> list[float]:
    """Log-probabilities by vLLM."""
    from vllm import LLM, SamplingParams
    from vllm.inputs import TokensPrompt

    llm = LLM(
        folder, skip_tokenizer_init=True, enforce_eager=True, max_model_len=256, max_num_seqs=4,
        max_num_batched_tokens=32, gpu_memory_utilization=0.1,
    )  # fmt: skip
    options = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False)
    (answer,) = llm.generate(TokensPrompt(prompt_token_ids=prompt), options)
    return [scores[token].logprob for scores, token in zip(answer.prompt_logprobs[1:], prompt[1:], strict=True)]


def main(name: str) -> None:
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    transformers.set_seed(0)
    prompt = torch.randint(3, SIZES["vocab_size"], (20,)).tolist()
    with tempfile.TemporaryDirectory() as folder:
        config = AutoConfig.for_model(name, **SIZES, **MODELS[name])
        AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(folder)
        differences = torch.tensor(measured(folder, prompt)) - torch.tensor(expected(folder, prompt))
    mean = differences.square().mean().sqrt()
    print(f"{name}: largest difference {differences.abs().max():.3f}, root of the mean square {mean:.3f}")


if __name__ == "__main__":
    main(sys.argv[1])
