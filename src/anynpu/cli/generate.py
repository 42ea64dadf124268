# SPDX-License-Identifier: Apache-2.0
"""``anynpu generate``: text from a language model with quantised weights."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from anynpu.cli.errors import USAGE, fail
from anynpu.demo import compare, smollm2
from anynpu.quantization import W4A16, W8A16


class Weights(str, Enum):
    """Of the decoder's linear layers."""

    int4 = "int4"
    int8 = "int8"
    float32 = "float32"


_CONFIGS = {Weights.int4: W4A16(32, symmetric=False), Weights.int8: W8A16()}


def generate(
    prompt: Annotated[str, typer.Argument(help="What to ask.")],
    tokens: Annotated[int, typer.Option(min=1, help="Stop after this many tokens.")] = 128,
    weights: Annotated[Weights, typer.Option(help="Of the decoder's linear layers.")] = Weights.int4,
) -> None:
    """Answer a question with a quantised model.

    The model is SmolLM2-135M-Instruct, decoded greedily; the text is printed as it comes.
    """
    try:
        model, tokenizer = smollm2.load()
    except smollm2.ModelUnavailable as error:
        fail(str(error), USAGE)
    from transformers import TextStreamer

    if weights in _CONFIGS:
        model = compare.quantised(model, _CONFIGS[weights], head=W8A16(32))
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    model.generate(**smollm2.chat(tokenizer, prompt), max_new_tokens=tokens, do_sample=False, streamer=streamer)
