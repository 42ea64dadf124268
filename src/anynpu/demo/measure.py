# SPDX-License-Identifier: Apache-2.0
"""What the demonstration reports of a language model: size, perplexity on a text, decoding speed."""

from __future__ import annotations

import math
import time
from pydoc_data.topics import topics
from typing import Any

import torch

WINDOW = 512


def sample_text() -> str:
    """40,000 characters of the Python language reference, which every CPython carries."""
    return "\n".join(topics.values())[20_000:60_000]


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


def saved_bytes(model: torch.nn.Module) -> int:
    """Bytes of the model's state as a file would hold it, memory that several tensors share counted once."""
    storages = (tensor.untyped_storage() for tensor in model.state_dict().values())
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
