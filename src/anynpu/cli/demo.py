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

from anynpu.cli.errors import USAGE, fail
from anynpu.demo import compare, examples, smollm2

_SLICE, _FULL = 1024, 4095  # predictions for the perplexity


def _table(rows: list[compare.Row], predictions: int) -> Table:
    caption = f"greedy decoding, batch 1; perplexity over {predictions} predictions"
    table = Table("SmolLM2-135M-Instruct", caption=caption)
    for title in ("saved, MB", "tokens/s", "perplexity"):
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(row.name, f"{row.megabytes:.1f}", f"{row.tokens_per_second:.1f}", f"{row.perplexity:.3f}")
    return table


def _run_example(name: str, console: Console) -> str:
    console.print(f"anynpu run {examples.locate(name)}", style="bold", soft_wrap=True, highlight=False)
    try:
        output = examples.run(name)
    except subprocess.CalledProcessError as error:
        fail(f"the example {name} failed with exit code {error.returncode}")
    console.print(output, markup=False, highlight=False)
    return output


def _measure(console: Console, predictions: int, tokens: int) -> list[compare.Row]:
    with console.status("loading SmolLM2-135M-Instruct"):
        model, tokenizer = smollm2.load()
    rows = []
    with console.status("measuring") as status:
        for row in compare.rows(model, tokenizer, predictions, tokens):
            rows.append(row)
            status.update(f"measuring: {row.name} done")
    return rows


def demo(
    full: Annotated[bool, typer.Option(help=f"Take the perplexity over {_FULL} tokens instead of {_SLICE}.")] = False,
    tokens: Annotated[int, typer.Option(min=2, help="How many tokens to generate for the speed.")] = 32,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the operators at work on a real model.

    Runs two torch_npu examples, then compares a language model in float and with quantised weights.
    """
    console = Console(stderr=as_json)
    try:
        smollm2.locate()
        outputs = {name: _run_example(name, console) for name in examples.NAMES}
        predictions = _FULL if full else _SLICE
        rows = _measure(console, predictions, tokens)
    except smollm2.ModelUnavailable as error:
        fail(str(error), USAGE)
    if as_json:
        told = {"examples": outputs, "predictions": predictions, "rows": [dataclasses.asdict(row) for row in rows]}
        print(json.dumps(told, indent=2))
        return
    console.print(_table(rows, predictions))
    console.print(compare.QUESTION, style="bold")
    for text in dict.fromkeys(row.text for row in rows):
        names = "; ".join(row.name for row in rows if row.text == text)
        console.print(f"\n{names}:\n{text}", markup=False, highlight=False)
