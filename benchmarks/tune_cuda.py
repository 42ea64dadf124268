# SPDX-License-Identifier: Apache-2.0
"""Finds the fastest tile of weight_quant_matmul for each kind of weight and number of rows on this GPU, and writes them
to the file that the operator reads.

python benchmarks/tune_cuda.py
"""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Iterator
from typing import Any

import cuda_measure
import torch
import typer
from measure import copies_for
from problems import MatmulProblem

import anynpu
from anynpu.ops.weight_quant_matmul import triton as kernels

ROUNDS = 5
SHAPES = [(4096, 4096), (4096, 14336), (14336, 4096)]
KINDS = {"int4 along N": (4, False), "int4 along K": (4, True), "int8": (8, False)}
ROWS = {16: 16, 64: 64, None: 1024}  # most_m of an entry -> the rows that stand for it


def candidates(most_m: int | None) -> Iterator[dict[str, int]]:
    """Tiles worth a try."""
    heights = {16: (16,), 64: (32, 64), None: (64, 128)}[most_m]
    splits = (132, 264, 528, 1056) if most_m == 16 else (132, 264)
    for height, width, depth, warps, stages, programs in itertools.product(
        heights, (32, 64, 128, 256), (64, 128), (4, 8), (2, 3, 4), splits
    ):
        if height * width <= 128 * 256 and (most_m is not None or width >= 64):
            tile = {"BM": height, "BN": width, "BK": depth, "num_warps": warps, "num_stages": stages}
            yield {**tile, "programs": programs}


def seconds_of(tile: dict[str, int], problems: list[Any]) -> float:
    """The time of one call of each problem with one tile; infinite where the tile does not fit."""
    total = 0.0
    with _tile(tile):
        for calls in problems:
            try:
                replay = cuda_measure.captured(calls)
            except (RuntimeError, kernels.triton.runtime.errors.OutOfResources):
                return float("inf")
            total += statistics.median(replay() for _ in range(ROUNDS))
    return total


class _tile:
    """The operator with one tile for everything."""

    def __init__(self, tile: dict[str, int]) -> None:
        self._tile = tile

    def __enter__(self) -> None:
        self._before = kernels._configuration
        kernels._configuration = lambda m, dtype, stored: self._tile

    def __exit__(self, *error: object) -> None:
        kernels._configuration = self._before


def calls_of(problem: MatmulProblem, along_k: bool, device: torch.device) -> list[Any]:
    """The calls of one problem, on copies of the weight that fill any cache."""
    x, scale = problem.x.to(device).bfloat16(), problem.scale.to(device).bfloat16()
    integers = problem.weight.to(device)
    integers = integers.t().contiguous() if along_k else integers
    weight = anynpu.int4_pack(integers) if problem.bits == 4 else integers.to(torch.int8)

    def call_with(weight: torch.Tensor) -> Any:
        stored = weight.t() if along_k else weight
        return lambda: kernels.weight_quant_matmul(x, stored, scale, group_size=problem.group_size)

    return [call_with(weight.clone()) for _ in range(copies_for(weight.nbytes))]


def tuned(device: torch.device) -> dict[str, list[dict[str, Any]]]:
    """The entries of the kinds that are tuned."""
    found = {}
    for kind, (bits, along_k) in KINDS.items():
        found[kind] = []
        for most_m, m in ROWS.items():
            problems = [calls_of(MatmulProblem(m, k, n, 128, bits), along_k, device) for k, n in SHAPES]
            best = min(candidates(most_m), key=lambda tile: seconds_of(tile, problems))
            print(f"{kind}, m <= {most_m}: {best}", flush=True)
            found[kind].append({"most_m": most_m, "tile": best})
    return found


def main() -> None:
    """Tune on the current GPU."""
    if not torch.cuda.is_available():
        raise SystemExit("tune_cuda: torch.cuda.is_available() is False")
    data = json.loads(kernels._CONFIGURATIONS.read_text())
    data["tuned_on"] = torch.cuda.get_device_name()
    data["weight_quant_matmul"] |= tuned(torch.device("cuda", torch.cuda.current_device()))
    kernels._CONFIGURATIONS.write_text(json.dumps(data, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
