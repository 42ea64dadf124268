# SPDX-License-Identifier: Apache-2.0
"""Measures anynpu's operators against the machine's limits and other libraries: see docs/benchmarks/README.md.

python benchmarks/run.py --quick
python benchmarks/run.py --quick --device cuda
"""

from __future__ import annotations

import fnmatch
import itertools
import json
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import cuda_cases
import cuda_measure
import cuda_targets
import overhead
import peers
import report
import torch
import typer
from cases import CASES
from measure import compare


def _print_overhead() -> dict[str, dict[str, float]]:
    result = {"tiny_calls_us": overhead.tiny_calls(), "alternation_us": overhead.alternation()}
    print("### Overhead\n\n| call | µs |\n| --- | --: |")
    for name, microseconds in itertools.chain(*(part.items() for part in result.values())):
        print(f"| {name} | {microseconds:.1f} |")
    print()
    return result


def _measure(operator: str, pattern: str, quick: bool, threads: int, rounds: int) -> list[dict]:
    case = CASES[operator]
    result = []
    for problem in case.problems(quick):
        if not fnmatch.fnmatch(problem.name, pattern):
            continue
        variants = [*case.variants(problem), *peers.variants(operator, problem)]
        rows = report.rows(operator, problem, compare(variants, case.limits, threads, rounds))
        print(report.markdown(rows), flush=True)
        result += rows
    return result


def _measure_on_gpu(operator: str, pattern: str, quick: bool, limits: dict, rounds: int) -> list[dict]:
    case, device = cuda_cases.CASES[operator], torch.device("cuda", torch.cuda.current_device())
    result = []
    for problem in case.problems(quick):
        if fnmatch.fnmatch(problem.name, pattern):
            variants = list(case.variants(problem, device))
            chosen = {name: limits[name] for name in case.limits}
            rows = report.rows(operator, problem, cuda_measure.compare(variants, chosen, rounds))
            print(report.markdown(rows), flush=True)
            result += rows
            del variants
            torch.cuda.empty_cache()
    return result


class Device(str, Enum):
    """What is measured."""

    cpu = "cpu"
    cuda = "cuda"


def main(
    operator: Annotated[list[str] | None, typer.Option(help="Only this operator; may be repeated.")] = None,
    device: Annotated[Device, typer.Option(help="What to measure.")] = Device.cpu,
    cases: Annotated[str, typer.Option(help="Only cases whose name matches, e.g. 'm1_*'.")] = "*",
    threads: Annotated[int, typer.Option(min=1)] = torch.get_num_threads(),
    rounds: Annotated[int, typer.Option(min=1, help="Every variant once a round.")] = 11,
    quick: Annotated[bool, typer.Option(help="A few cases only.")] = False,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write all figures here.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw a picture here (needs matplotlib).")] = None,
) -> None:
    """Measure operators against the machine's limits and every installed peer; prints Markdown."""
    on_gpu = device == Device.cuda
    known = cuda_cases.CASES if on_gpu else CASES
    names = operator or list(known)
    if unknown := set(names) - set(known):
        sys.exit(f"no benchmark for {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    if on_gpu and not torch.cuda.is_available():
        sys.exit("--device cuda: torch.cuda.is_available() is False")
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    machine = report.gpu() if on_gpu else report.machine(threads)
    print("\n".join(f"- {name}: {value}" for name, value in machine.items()) + "\n", flush=True)
    if on_gpu:
        overheads, limits = {}, cuda_measure.roofs(torch.device("cuda", torch.cuda.current_device()))
        rows = [row for name in names for row in _measure_on_gpu(name, cases, quick, limits, rounds)]
        print(cuda_targets.markdown(rows))
    else:
        overheads = _print_overhead()
        rows = [row for name in names for row in _measure(name, cases, quick, threads, rounds)]
    if json_path:
        json_path.write_text(json.dumps({"machine": machine, "overhead": overheads, "rows": rows}, indent=2) + "\n")
    if plot:
        report.plot(rows, plot)


if __name__ == "__main__":
    typer.run(main)
