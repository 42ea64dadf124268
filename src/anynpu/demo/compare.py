# SPDX-License-Identifier: Apache-2.0
"""The same model with float and with quantised weights: size, speed, quality."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from anynpu.demo import measure, smollm2, split_ffn
from anynpu.quantization import W4A16, W8A8, W8A16, WeightQuantConfig, quantize_

QUESTION = "Explain in one sentence what a neural processing unit is."


@dataclass(frozen=True)
class Row:
    """One variant of the model; activations are float32 unless the name says otherwise."""

    name: str
    megabytes: float
    tokens_per_second: float
    perplexity: float
    text: str


def quantised(model: torch.nn.Module, blocks: WeightQuantConfig, head: WeightQuantConfig | None) -> torch.nn.Module:
    """A copy of a causal language model with quantised decoder blocks and, unless ``head`` is None, output layer."""
    model = copy.deepcopy(model)
    quantize_(model.model, blocks)
    if head is not None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="quantize_: lm_head.weight was tied")
            quantize_(model, head)
    return model


def variants() -> dict[str, Callable[[torch.nn.Module], torch.nn.Module]]:
    """What the table compares. The weights of the blocks lie on an asymmetric 4-bit grid with groups of 32, so that
    W4A16 with those groups changes nothing."""
    four32, four64, eight = W4A16(32, symmetric=False), W4A16(64, symmetric=False), W8A16()
    return {
        "torch fp32": lambda model: model,
        "torch bf16": lambda model: copy.deepcopy(model).to(torch.bfloat16),
        "anynpu W4A16 g32, fp32 head": lambda model: quantised(model, four32, None),
        "anynpu W4A16 g32, W8A16 head": lambda model: quantised(model, four32, W8A16(32)),
        "anynpu W4A16 g64, W8A16 head": lambda model: quantised(model, four64, W8A16(32)),
        "anynpu W8A16, W8A16 head": lambda model: quantised(model, eight, eight),
        "anynpu W8A8, FFN as 8 experts": lambda model: split_ffn.with_experts(model, W8A8()),
    }


def rows(model: torch.nn.Module, tokenizer: Any, predictions: int, new_tokens: int) -> Iterator[Row]:
    """Measures every variant; ``predictions`` tokens of text for the perplexity, ``new_tokens`` for the speed."""
    text = torch.tensor(tokenizer(measure.sample_text(), add_special_tokens=False).input_ids)
    prompt = smollm2.chat(tokenizer, QUESTION)
    for name, prepare in variants().items():
        variant = prepare(model)
        generated, rate = measure.decode(variant, prompt, new_tokens)
        yield Row(
            name,
            measure.saved_bytes(variant) / 1e6,
            rate,
            measure.perplexity(variant, text, predictions),
            tokenizer.decode(generated, skip_special_tokens=True).strip(),
        )
