# SPDX-License-Identifier: Apache-2.0
"""What the operators are meant to reach on a GPU, and whether they did."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

_BF16_MATMUL = "torch linear bf16"


@dataclass(frozen=True)
class Target:
    """``measured`` of a row must be at least ``least`` in the cases that match; anynpu's fastest variant counts."""

    operator: str
    cases: str
    least: float
    unit: str
    measured: Callable[[dict[str, Any]], float]


def _percent_of(limit: str) -> Callable[[dict[str, Any]], float]:
    return lambda row: row["percent_of_limit"][limit]


def _times_as_fast(other: str) -> Callable[[dict[str, Any]], float]:
    return lambda row: 1 / row["times_as_long"][other]


TARGETS = [
    Target("weight_quant_matmul", "m1_*_w4_*", 75, "% of copy bandwidth", _percent_of("copy")),
    Target("weight_quant_matmul", "m1_*_w4_*", 3, "x bf16 matmul", _times_as_fast(_BF16_MATMUL)),
    Target("weight_quant_matmul", "m16_*_w4_*", 2.5, "x bf16 matmul", _times_as_fast(_BF16_MATMUL)),
    Target("weight_quant_matmul", "m512_*_w4_*", 0.8, "x bf16 matmul", _times_as_fast(_BF16_MATMUL)),
    Target("weight_quant_matmul", "m4096_*_w4_*", 0.8, "x bf16 matmul", _times_as_fast(_BF16_MATMUL)),
    Target("rope_kv_cache", "tokens4096_*", 75, "% of copy bandwidth", _percent_of("copy")),
    Target("grouped_matmul_combine", "rows64_*", 70, "% of copy bandwidth", _percent_of("copy")),
    Target("grouped_matmul_combine", "rows8192_*", 60, "% of dense int8", _percent_of("int8")),
    Target("compressed_matmul", "m1_*", 500, "GB/s of decoded weights", lambda row: row["gigabytes_per_second"]),
]


def _fastest(rows: list[dict[str, Any]], target: Target) -> Iterator[dict[str, Any]]:
    """For each matching case the fastest of anynpu's variants."""
    ours = [row for row in rows if row["operator"] == target.operator and row["variant"].startswith("anynpu")]
    for case in dict.fromkeys(row["case"] for row in ours if fnmatch.fnmatch(row["case"], target.cases)):
        yield min((row for row in ours if row["case"] == case), key=lambda row: row["microseconds"])


def markdown(rows: list[dict[str, Any]]) -> str:
    """A line for each target and case that was measured."""
    lines = [
        "### Targets",
        "",
        "| operator | case | variant | target | measured | |",
        "| --- | --- | --- | --: | --: | --- |",
    ]
    for target in TARGETS:
        for row in _fastest(rows, target):
            measured = target.measured(row)
            verdict = "reached" if measured >= target.least else "missed"
            cells = (row["operator"], row["case"], row["variant"], f"{target.least:g} {target.unit}", f"{measured:.2f}")
            lines.append(f"| {' | '.join(cells)} | {verdict} |")
    return "\n".join([*lines, ""])
