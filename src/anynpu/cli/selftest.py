# SPDX-License-Identifier: Apache-2.0
"""``anynpu selftest``: is every operator right on this machine?"""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from anynpu import selftest as checks
from anynpu._register import operators
from anynpu.cli import consoles
from anynpu.cli.errors import USAGE, fail


def _table(results: list[checks.Result]) -> Table:
    table = Table("operator", "device", "tier", "result")
    table.add_column("samples", justify="right")
    table.add_column("seconds", justify="right")
    for row in results:
        verdict = "[red]FAILED[/red]" if row.failures else "[green]ok[/green]"
        passed = f"{row.samples - len(row.failures)}/{row.samples}"
        table.add_row(row.operator, row.device, row.tier or "-", verdict, passed, f"{row.seconds:.2f}")
    return table


def _print_report(results: list[checks.Result], refused: dict[str, str], console: Console) -> None:
    console.print(_table(results))
    for tier, reason in refused.items():
        console.print(f"not run: {tier} ({reason})", highlight=False)
    for row in results:
        for failure in row.failures:
            where = " ".join(part for part in (row.operator, row.device, row.tier) if part)
            console.print(f"{where}: {failure}", style="red", markup=False, highlight=False)
    failed = sum(bool(row.failures) for row in results)
    console.print(f"{len(results) - failed} of {len(results)} combinations agree with the reference", highlight=False)


def selftest(
    operator: Annotated[list[str] | None, typer.Option(help="Only this operator; may be repeated.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare every operator with its reference.

    On every device and instruction set tier of this machine. The exit code is 1 when something differs.
    """
    names = operator or []
    if unknown := [name for name in names if name not in operators]:
        fail(f"no operator {unknown[0]!r}; there are {', '.join(sorted(operators))}", USAGE)
    console = consoles.output()
    refused = checks.refused_tiers()
    results = []
    with consoles.progress() as progress:
        task = progress.add_task("checking", total=None)
        for result in checks.run(names):
            results.append(result)
            progress.update(task, description=f"{result.operator} {result.tier or result.device}")
    if as_json:
        print(json.dumps({"results": [dataclasses.asdict(row) for row in results], "not_run": refused}, indent=2))
    else:
        _print_report(results, refused, console)
    raise typer.Exit(1 if any(row.failures for row in results) else 0)
