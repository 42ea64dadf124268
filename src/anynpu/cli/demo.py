# SPDX-License-Identifier: Apache-2.0
"""``anynpu demo``: a torch_npu example, and a real language model on anynpu's operators."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from anynpu.cli.consoles import stages
from anynpu.cli.errors import USAGE, fail
from anynpu.demo import compare, examples, smollm2

_SLICE, _FULL = 1024, 4095  # predictions for the perplexity


def _table(rows: list[compare.Row], predictions: int) -> Table:
    caption = f"greedy decoding, batch 1; perplexity over {predictions} predictions"
    table = _empty_table("SmolLM2-135M-Instruct", caption, "saved, MB", "tokens/s", "perplexity")
    for row in rows:
        table.add_row(row.name, f"{row.megabytes:.1f}", f"{row.tokens_per_second:.1f}", f"{row.perplexity:.3f}")
    return table


def _cache_table(rows: list[compare.CacheRow], predictions: int) -> Table:
    caption = f"the float32 model, greedy decoding, batch 1; perplexity over {predictions} predictions"
    speeds = [f"tokens/s at {context}" for context in compare.CONTEXTS]
    table = _empty_table("KV cache", caption, "bytes/token", *speeds, "perplexity")
    for row in rows:
        speeds = [f"{row.tokens_per_second[context]:.1f}" for context in compare.CONTEXTS]
        table.add_row(row.name, str(row.bytes_per_token), *speeds, f"{row.perplexity:.3f}")
    return table


def _empty_table(name: str, caption: str, *columns: str) -> Table:
    table = Table(name, caption=caption)
    for title in columns:
        table.add_column(title, justify="right")
    return table


def _run_example(name: str, console: Console) -> str:
    console.print(f"anynpu run {examples.locate(name)}", style="bold", soft_wrap=True, highlight=False)
    try:
        output = examples.run(name)
    except subprocess.CalledProcessError as error:
        fail(f"the example {name} failed with exit code {error.returncode}")
    console.print(output, markup=False, highlight=False)
    return output


def _measure(console: Console, predictions: int, tokens: int) -> tuple[list[compare.Row], list[compare.CacheRow]]:
    rows, caches = [], []
    with stages(console) as tell:
        tell("loading SmolLM2-135M-Instruct")
        model, tokenizer = smollm2.load()
        tell("measuring the variants of the model")
        for row in compare.rows(model, tokenizer, predictions, tokens):
            rows.append(row)
            tell(f"measured {row.name}")
        tell("measuring KV caches")
        caches += compare.cache_rows(model, tokenizer, predictions, tokens)
    return rows, caches


def demo(
    full: Annotated[
        bool, typer.Option("--full", help=f"Take the perplexity over {_FULL} tokens instead of {_SLICE}.")
    ] = False,
    tokens: Annotated[int, typer.Option(min=2, help="How many tokens to generate for the speed.")] = 32,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the operators at work on a real model.

    Runs two torch_npu examples, then a language model in float, with quantised weights, and with an INT8 KV cache.
    """
    console = Console(stderr=as_json)
    try:
        smollm2.locate()
        outputs = {name: _run_example(name, console) for name in examples.NAMES}
        predictions = _FULL if full else _SLICE
        rows, caches = _measure(console, predictions, tokens)
    except smollm2.ModelUnavailable as error:
        fail(str(error), USAGE)
    if as_json:
        tables = {"rows": rows, "caches": caches}
        told = {name: [dataclasses.asdict(row) for row in table] for name, table in tables.items()}
        print(json.dumps({"examples": outputs, "predictions": predictions, **told}, indent=2))
        return
    console.print(_table(rows, predictions))
    console.print(_cache_table(caches, predictions))
    console.print(compare.QUESTION, style="bold")
    for text in dict.fromkeys(row.text for row in rows):
        names = "; ".join(row.name for row in rows if row.text == text)
        console.print(f"\n{names}:\n{text}", markup=False, highlight=False)
