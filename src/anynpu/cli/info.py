# SPDX-License-Identifier: Apache-2.0
"""``anynpu info``: what this process runs on."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.table import Table

from anynpu import environment
from anynpu.cli import consoles


def _tier_line(tier: dict[str, Any]) -> str:
    if tier["used"]:
        return f"{tier['name']}: in use"
    return f"{tier['name']}: {tier['refusal'] or 'available, a better tier is in use'}"


def _table(facts: dict[str, Any]) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    rows = {
        "anynpu": facts["anynpu"],
        "library": f"{facts['library']['path']} (ABI {facts['library']['abi_version']})",
        "CPU": f"{facts['cpu']['model']}, {facts['cpu']['logical_cpus']} logical CPUs",
        "ISA tiers": "\n".join(_tier_line(tier) for tier in facts["isa"]["tiers"]),
        "threads": str(facts["threads"]),
        "OpenMP": "\n".join(facts["openmp_runtimes"]) or "none found",
        "torch": facts["torch"],
        "Python": facts["python"],
        "devices": "\n".join(facts["devices"]),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def info(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show what this process runs on.

    The CPU, the instruction set tier and why better ones are not used, OpenMP runtimes, threads, devices.
    """
    facts = environment.collect()
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    console = consoles.output()
    console.print(_table(facts))
    for warning in facts["warnings"]:
        console.print(f"warning: {warning}", style="yellow", markup=False)
