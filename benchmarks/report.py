# SPDX-License-Identifier: Apache-2.0
"""Results as plain rows (for JSON), Markdown tables and a plot."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cuda_measure
import peers
import roofs
import torch
from measure import Comparison, Timing

import anynpu
from anynpu import _native
from anynpu.environment import cpu_model

_UNITS = {**cuda_measure.UNITS, **roofs.UNITS}


def gpu() -> dict[str, Any]:
    """What the figures were measured on."""
    import triton

    return {
        "gpu": torch.cuda.get_device_name(),
        "cuda": torch.version.cuda,
        "anynpu": anynpu.__version__,
        "torch": torch.__version__,
        "triton": triton.__version__,
    }


def machine(threads: int) -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "cpu": cpu_model(),
        "logical_cpus": os.cpu_count(),
        "threads": threads,
        "isa": _native.isa(),
        "anynpu": anynpu.__version__,
        "torch": torch.__version__,
        "peers_not_installed": peers.unavailable(),
    }


def rows(operator: str, problem: Any, comparison: Comparison) -> list[dict[str, Any]]:
    """One row for each variant; ``times_as_long`` compares it with every other."""
    return [_row(operator, problem, timing, comparison) for timing in comparison.timings]


def _row(operator: str, problem: Any, timing: Timing, comparison: Comparison) -> dict[str, Any]:
    seconds = timing.median
    gigabytes = timing.variant.bytes / seconds / 1e9
    operations = problem.operations / seconds / 1e9
    beside = {name: timing.limit(name) for name in timing.limits} or comparison.limits
    limits = {name: rate for name, rate in beside.items() if rate}
    bandwidths = ("read", "copy")
    percent = {name: 100 * (gigabytes if name in bandwidths else operations) / rate for name, rate in limits.items()}
    return {
        "operator": operator,
        "case": problem.name,
        "variant": timing.variant.name,
        "arithmetic": timing.variant.arithmetic,
        "microseconds": 1e6 * seconds,
        "gigabytes_per_second": gigabytes,
        "giga_operations_per_second": operations,
        "limits": limits,
        "percent_of_limit": percent,
        "relative_error": timing.error,
        "times_as_long": {
            other.variant.name: seconds / other.median for other in comparison.timings if other is not timing
        },
        "rounds": comparison.rounds,
        "clean_rounds": comparison.clean_rounds,
        "handover_ns": list(comparison.handover),
    }


def markdown(case_rows: list[dict[str, Any]]) -> str:
    """The table of one case, fastest first; the last column compares with the fastest variant of anynpu."""
    ordered = sorted(case_rows, key=lambda row: row["microseconds"])
    ours = next(row for row in ordered if row["variant"].startswith("anynpu"))
    first = ordered[0]
    limits = list(first["limits"])
    header = [
        "variant",
        "arithmetic",
        "µs",
        "GB/s",
        "Gop/s",
        *(f"% of {name}" for name in limits),
        f"time / {ours['variant']}",
    ]
    lines = [_line(header), _line(["---", "---", *["--:"] * (len(header) - 2)])]
    for row in ordered:
        percent = [f"{row['percent_of_limit'][name]:.0f}" for name in limits]
        figures = [f"{row[key]:.1f}" for key in ("microseconds", "gigabytes_per_second", "giga_operations_per_second")]
        ratio = row["microseconds"] / ours["microseconds"]
        lines.append(_line([row["variant"], row["arithmetic"], *figures, *percent, f"{ratio:.2f}"]))
    measured = ", ".join(f"{name} {rate:.1f} {_UNITS[name]}" for name, rate in first["limits"].items())
    title = f"### {first['operator']} {first['case']}"
    rounds = f"{first['clean_rounds']} of {first['rounds']} rounds clean"
    beside = f"Limits beside {first['variant']}: {measured}; {rounds}."
    if first["handover_ns"][1]:
        beside += " A write reaches the other CPU in {:.0f} to {:.0f} ns.".format(*first["handover_ns"])
    return "\n".join([title, "", *lines, "", beside, ""])


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def plot(all_rows: list[dict[str, Any]], path: Path) -> None:
    """Bars of the time of each variant, one panel for each case."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cases = list(dict.fromkeys((row["operator"], row["case"]) for row in all_rows))
    figure, axes = pyplot.subplots(len(cases), 1, figsize=(9, 2.6 * len(cases)), squeeze=False, layout="constrained")
    for axis, (operator, case) in zip(axes[:, 0], cases, strict=True):
        chosen = [row for row in all_rows if (row["operator"], row["case"]) == (operator, case)]
        chosen.sort(key=lambda row: -row["microseconds"])
        colours = ["C0" if row["variant"].startswith("anynpu") else "C7" for row in chosen]
        labels = [f"{row['variant']} ({row['arithmetic']})" for row in chosen]
        axis.barh(labels, [row["microseconds"] for row in chosen], color=colours)
        axis.set_title(f"{operator} {case}")
        axis.set_xlabel("µs, lower is better")
    figure.savefig(path)
