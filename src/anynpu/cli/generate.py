# SPDX-License-Identifier: Apache-2.0
"""``anynpu generate``: text from a language model with quantised weights."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from anynpu.checkpoints import load_checkpoint
from anynpu.cli.errors import USAGE, fail
from anynpu.demo import compare, smollm2
from anynpu.quantization import W4A16, W8A16


class Weights(str, Enum):
    """Of the decoder's linear layers."""

    int4 = "int4"
    int8 = "int8"
    float32 = "float32"


_CONFIGS = {Weights.int4: W4A16(32, symmetric=False), Weights.int8: W8A16()}


def _from_checkpoint(path: Path) -> tuple[Any, Any]:
    """The model and the tokenizer of a folder or a GGUF file."""
    try:
        model = load_checkpoint(path)
    except ImportError as error:
        fail(str(error), USAGE)
    except (ValueError, TypeError) as error:
        fail(str(error))
    from transformers import AutoTokenizer

    folder, file = (path, None) if path.is_dir() else (path.parent, path.name)
    try:
        return model, AutoTokenizer.from_pretrained(folder, gguf_file=file, local_files_only=True)
    except (ValueError, OSError) as error:
        fail(f"the tokenizer of {path} cannot be read: {error}")


def _smollm2(weights: Weights) -> tuple[Any, Any]:
    try:
        model, tokenizer = smollm2.load()
    except smollm2.ModelUnavailable as error:
        fail(str(error), USAGE)
    if weights in _CONFIGS:
        model = compare.quantised(model, _CONFIGS[weights], head=W8A16(32))
    return model, tokenizer


def _encode(tokenizer: Any, prompt: str) -> Any:
    return smollm2.chat(tokenizer, prompt) if tokenizer.chat_template else tokenizer(prompt, return_tensors="pt")


def generate(
    prompt: Annotated[str, typer.Argument(help="What to ask.")],
    tokens: Annotated[int, typer.Option(min=1, help="Stop after this many tokens.")] = 128,
    weights: Annotated[Weights | None, typer.Option(help="Of SmolLM2's decoder.", show_default="int4")] = None,
    model: Annotated[
        Path | None, typer.Option(exists=True, help="A folder or GGUF file, as load_checkpoint reads; else SmolLM2.")
    ] = None,
) -> None:
    """Answer a question with a quantised model.

    The model is SmolLM2-135M-Instruct, or that of a checkpoint, decoded greedily; the text is printed as it comes.
    """
    if model is not None and weights is not None:
        fail("--weights is for SmolLM2 only: a checkpoint has its own weights", USAGE)
    loaded, tokenizer = _smollm2(weights or Weights.int4) if model is None else _from_checkpoint(model)
    from transformers import TextStreamer

    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    loaded.generate(**_encode(tokenizer, prompt), max_new_tokens=tokens, do_sample=False, streamer=streamer)
