# SPDX-License-Identifier: Apache-2.0
"""What the demonstration reports of a language model: size, perplexity on a text, decoding speed."""

from __future__ import annotations

import math
import statistics
import time
from pydoc_data.topics import topics
from typing import Any

import torch

WINDOW = 512


def sample_text() -> str:
    """40,000 characters of the Python language reference, which every CPython carries."""
    return "\n".join(topics.values())[20_000:60_000]


def sample_tokens(tokenizer: Any) -> torch.Tensor:
    """The token ids of the sample text."""
    return torch.tensor(tokenizer(sample_text(), add_special_tokens=False).input_ids)


@torch.inference_mode()
def perplexity(model: torch.nn.Module, tokens: torch.Tensor, predictions: int) -> float:
    """exp of the mean loss over the first ``predictions`` next-token predictions, in windows of 512 without overlap."""
    loss = 0.0
    for start in range(0, predictions, WINDOW):
        window = tokens[start : min(start + WINDOW, predictions) + 1]
        logits = model(window[None, :-1]).logits[0].float()
        loss += torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum").item()
    return math.exp(loss / predictions)


@torch.inference_mode()
def decode(model: torch.nn.Module, prompt: Any, new_tokens: int) -> tuple[torch.Tensor, float]:
    """Greedy decoding with a KV cache, batch 1: the new token ids, and tokens/s without the time of the prompt."""

    def generate(count: int) -> tuple[torch.Tensor, float]:
        start = time.perf_counter()
        output = model.generate(**prompt, max_new_tokens=count, min_new_tokens=count, do_sample=False)
        return output[0, prompt["input_ids"].shape[1] :], time.perf_counter() - start

    generate(2)  # warm up
    _, first_seconds = generate(1)
    tokens, seconds = generate(new_tokens)
    return tokens, (new_tokens - 1) / (seconds - first_seconds)


def fill_cache(cache: Any, source: Any, tokens: int) -> None:
    """Gives an empty KV cache the first ``tokens`` of a float one."""
    for index, layer in enumerate(source.layers):
        cache.update(layer.keys[:, :, :tokens], layer.values[:, :, :tokens], index)


@torch.inference_mode()
def decode_rate(model: torch.nn.Module, cache: Any, token: torch.Tensor, steps: int) -> float:
    """tokens/s of greedy decoding, batch 1, that goes on from a filled cache: the median step."""
    seconds = []
    token = token.reshape(1, 1)
    for _ in range(steps + 1):
        start = time.perf_counter()
        token = model(token, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
        seconds.append(time.perf_counter() - start)
    return 1 / statistics.median(seconds[1:])  # the first one warms up


def saved_bytes(model: torch.nn.Module) -> int:
    """Bytes of the model's state as a file would hold it, memory that several tensors share counted once."""
    storages = (tensor.untyped_storage() for tensor in model.state_dict().values())
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
