# SPDX-License-Identifier: Apache-2.0
"""``anynpu compress``, ``decompress`` and ``inspect``: checkpoints with losslessly compressed int8 weights."""

from __future__ import annotations

import dataclasses
import json
from enum import Enum
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.table import Table
from safetensors import SafetensorError

from anynpu._read import open_tensors
from anynpu.cli import consoles
from anynpu.cli.errors import fail
from anynpu.formats.compressed import decompress_weight, entropy_bits
from anynpu.formats.compressed_files import (
    Summary,
    compress_file,
    compressed_weights,
    decompress_file,
    is_up_to_date,
)

# Of what was read and, SafetensorError, of what could not be written.
_REFUSALS = (TypeError, ValueError, OSError, SafetensorError)

Source = Annotated[Path, typer.Argument(metavar="IN", exists=True, help="A safetensors file, or a folder of them.")]
Target = Annotated[Path, typer.Argument(metavar="OUT", help="The file, or folder, to write.")]


class Granularity(str, Enum):
    """What one scale of a quantised float weight covers."""

    channel = "channel"
    tensor = "tensor"


def _files(source: Path, target: Path) -> list[tuple[Path, Path]]:
    if source.is_file():
        if target.exists() and not target.is_file():
            fail(f"OUT must be a file when IN is one, got {target}")
        return [(source, target)]
    if target.is_file():
        fail(f"OUT must be a folder when IN is one, got the file {target}")
    found = sorted(source.rglob("*.safetensors"))
    if not found:
        fail(f"no .safetensors file in {source}")
    return [(file, target / file.relative_to(source)) for file in found]


def _tensor_count(file: Path) -> int:
    with open_tensors("compress", file) as opened:
        return len(opened.keys())


def _fail(file: Path, error: Exception) -> NoReturn:
    if isinstance(error, OSError) and error.filename is not None:
        fail(f"{error.filename}: {error.strerror}")
    text = str(error)
    fail(text if str(file) in text else f"{file}: {text}")


def _table(summaries: list[Summary], timed: bool) -> Table:
    table = Table()
    table.add_column("weight", overflow="fold")
    for name in ("shape", "scale", "bits", "entropy", "ratio", *(["ms"] if timed else [])):
        table.add_column(name)
    for row in summaries:
        cells = [f"{row.bits:.3f}", f"{row.entropy:.3f}", f"{row.ratio:.3f}"]
        cells += [f"{1e3 * row.seconds:.1f}"] if timed else []
        table.add_row(row.name, f"{row.shape[0]} x {row.shape[1]}", row.granularity, *cells)
    return table


def _count(weights: int) -> str:
    return f"{weights} weight" if weights == 1 else f"{weights} weights"


def _total(summaries: list[Summary]) -> str:
    values = sum(row.shape[0] * row.shape[1] for row in summaries)
    if values == 0:
        return "no 2-D int8 weight found; --quantize channel or tensor makes float weights int8"
    bits = sum(row.shape[0] * row.shape[1] * row.bits for row in summaries) / values
    bound = sum(row.shape[0] * row.shape[1] * row.entropy for row in summaries) / values
    scale = ", ".join(sorted({row.granularity for row in summaries}))
    return (
        f"{_count(len(summaries))}, {values} values, {bits:.3f} bits each (order-0 entropy {bound:.3f}; scale: {scale})"
    )


def compress(
    source: Source,
    target: Target,
    quantize: Annotated[
        Granularity | None, typer.Option(help="Make 2-D float weights int8 first, a scale per channel or tensor.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Also where OUT is up to date.")] = False,
) -> None:
    """Compress the int8 weights of safetensors files without loss.

    A run that was stopped goes on where it was.
    """
    console = consoles.output()
    option = None if quantize is None else quantize.value
    summaries: list[Summary] = []
    written = 0
    for file, output in _files(source, target):
        try:
            if not force and is_up_to_date(file, output, option):
                console.print(f"{output} is up to date", markup=False)
                continue
            with consoles.progress() as bar:
                task = bar.add_task(file.name, total=_tensor_count(file))
                made = compress_file(file, output, option, lambda name, bar=bar, task=task: bar.advance(task))
            prefix = "" if source.is_file() else f"{file.relative_to(source)}: "
            summaries += [dataclasses.replace(row, name=prefix + row.name) for row in made]
            written += 1
        except _REFUSALS as error:
            _fail(file, error)
    if written:
        console.print(_table(summaries, timed=True))
        console.print(_total(summaries), markup=False)


def decompress(source: Source, target: Target) -> None:
    """Restore what compress compressed, bit for bit."""
    for file, output in _files(source, target):
        try:
            with consoles.progress() as bar:
                task = bar.add_task(file.name, total=None)
                count = decompress_file(file, output, lambda name, bar=bar, task=task: bar.advance(task))
        except _REFUSALS as error:
            _fail(file, error)
        print(f"{output}: {_count(count)}")


def inspect(
    source: Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="A compressed file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show and verify the compressed weights of a file."""
    rows = []
    try:
        for name, granularity, weight in compressed_weights(source):
            bound = entropy_bits(decompress_weight(weight))
            rows.append(Summary(name, (weight.n, weight.k), granularity, weight.bits_per_weight, bound, 0.0))
    except _REFUSALS as error:
        _fail(source, error)
    if as_json:
        fields = ("name", "shape", "granularity", "bits", "entropy")
        print(json.dumps([{field: getattr(row, field) for field in fields} for row in rows], indent=2))
        return
    console = consoles.output()
    console.print(_table(rows, timed=False))
    console.print(f"{_total(rows)}; all blocks are sound", markup=False)
