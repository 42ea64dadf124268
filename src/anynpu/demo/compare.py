# SPDX-License-Identifier: Apache-2.0
"""The same model with float and with quantised weights and KV caches: size, speed, quality."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from anynpu.demo import measure, smollm2, split_ffn
from anynpu.quantization import W4A8, W4A16, W8A8, W8A16, QuantConfig, W8A8Compressed, calibrate_activations, quantize_

CONTEXTS = (128, 2048)  # tokens in the cache
CALIBRATION = 2048  # tokens, from the end of the text that the perplexity is taken from the beginning of
QUESTION = "Explain in one sentence what a neural processing unit is."


@dataclass(frozen=True)
class Row:
    """One variant of the model; activations are float32 unless the name says otherwise, W8A8: int8."""

    name: str
    megabytes: float
    tokens_per_second: float
    perplexity: float
    text: str


@dataclass(frozen=True)
class CacheRow:
    """One kind of KV cache of the float32 model."""

    name: str
    bytes_per_token: int
    tokens_per_second: dict[int, float]  # by the tokens in the cache
    perplexity: float


def quantised(model: torch.nn.Module, blocks: QuantConfig, head: QuantConfig | None) -> torch.nn.Module:
    """A copy of a causal language model with quantised decoder blocks and, unless ``head`` is None, output layer."""
    model = copy.deepcopy(model)
    quantize_(model.model, blocks)
    if head is not None:
        _quantise_head(model, head)
    return model


def _quantise_head(model: torch.nn.Module, head: QuantConfig) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="quantize_: lm_head.weight was tied")
        quantize_(model, head)


def statically_quantised(model: torch.nn.Module, tokens: torch.Tensor) -> torch.nn.Module:
    """W8A8 with static scales from ``tokens``, but for the head and down_proj: a few of its inputs are so large that
    one scale for all of them leaves the others no precision."""
    model = copy.deepcopy(model)
    scales = calibrate_activations(model.model, [tokens[None]])
    quantize_(model.model, W8A8(activations=scales), skip=("down_proj",))
    quantize_(model.model, W8A8())
    _quantise_head(model, W8A8())
    return model


def variants(calibration: torch.Tensor) -> dict[str, Callable[[torch.nn.Module], torch.nn.Module]]:
    """What the table compares. The weights of the blocks lie on an asymmetric 4-bit grid with groups of 32, so that
    W4A16 with those groups changes nothing. ``calibration``: tokens for the static scales."""
    four32, four64, eight = W4A16(32, symmetric=False), W4A16(64, symmetric=False), W8A16()
    coarse = W8A8Compressed(granularity="tensor")
    return {
        "torch fp32": lambda model: model,
        "torch bf16": lambda model: copy.deepcopy(model).to(torch.bfloat16),
        "anynpu W4A16 g32, fp32 head": lambda model: quantised(model, four32, None),
        "anynpu W4A16 g32, W8A16 head": lambda model: quantised(model, four32, W8A16(32)),
        "anynpu W4A16 g64, W8A16 head": lambda model: quantised(model, four64, W8A16(32)),
        "anynpu W4A8 g64, W8A8 head": lambda model: quantised(model, W4A8(64), W8A8()),
        "anynpu W8A16, W8A16 head": lambda model: quantised(model, eight, eight),
        "anynpu W8A8, dynamic": lambda model: quantised(model, W8A8(), W8A8()),
        "anynpu W8A8, static but down_proj, head": lambda model: statically_quantised(model, calibration),
        "anynpu W8A8 compressed": lambda model: quantised(model, W8A8Compressed(), W8A8Compressed()),
        "anynpu W8A8 compressed, scale per tensor": lambda model: quantised(model, coarse, coarse),
        "anynpu W8A8, FFN as 8 experts": lambda model: split_ffn.with_experts(model, W8A8()),
    }


def rows(model: torch.nn.Module, tokenizer: Any, predictions: int, new_tokens: int) -> Iterator[Row]:
    """Measures every variant; ``predictions`` tokens of text for the perplexity, ``new_tokens`` for the speed."""
    text = measure.sample_tokens(tokenizer)
    prompt = smollm2.chat(tokenizer, QUESTION)
    for name, prepare in variants(text[-CALIBRATION:]).items():
        variant = prepare(model)
        generated, rate = measure.decode(variant, prompt, new_tokens)
        yield Row(
            name,
            measure.saved_bytes(variant) / 1e6,
            rate,
            measure.perplexity(variant, text, predictions),
            tokenizer.decode(generated, skip_special_tokens=True).strip(),
        )


@torch.inference_mode()
def cache_rows(model: torch.nn.Module, tokenizer: Any, predictions: int, new_tokens: int) -> Iterator[CacheRow]:
    """Measures the model with a float KV cache and with an INT8 one, whose attention function stays in the model."""
    from transformers import DynamicCache

    from anynpu.kv_cache import Int8Cache, Int8CacheModel, calibrate_kv

    text = measure.sample_tokens(tokenizer)
    filled = DynamicCache()
    model(text[None, : max(CONTEXTS)], past_key_values=filled)

    def rates(make: Callable[[], Any]) -> dict[int, float]:
        result = {}
        for context in CONTEXTS:
            cache = make()
            measure.fill_cache(cache, filled, context)
            result[context] = measure.decode_rate(model, cache, text[context], new_tokens)
        return result

    float_bytes = sum(layer.keys.nbytes + layer.values.nbytes for layer in filled.layers) // max(CONTEXTS)
    perplexity = measure.perplexity(model, text, predictions)
    yield CacheRow("float32", float_bytes, rates(DynamicCache), perplexity)
    scales = calibrate_kv(model, [text[-CALIBRATION:]])
    int8_bytes = Int8Cache(model, scales).bytes_per_token()
    perplexity = measure.perplexity(Int8CacheModel(model, scales), text, predictions)
    yield CacheRow("anynpu INT8", int8_bytes, rates(lambda: Int8Cache(model, scales)), perplexity)
