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
ROWS = {64: 64, None: 1024}  # most_m of an entry -> the rows that stand for it
FEW_ROWS = {8: 1, 16: 16}
KINDS_OF_FEW_ROWS = {
    f"int{bits} along {'K' if along_k else 'N'}": (bits, along_k) for bits in (4, 8) for along_k in (False, True)
}


def candidates(kind: str, most_m: int | None) -> Iterator[dict[str, int]]:
    """Tiles worth a try: few enough that compiling them takes minutes."""
    along_n = kind == "int4 along N"
    heights = {64: (32, 64), None: (128,) if along_n else (64, 128)}[most_m]
    widths = (128, 256) if along_n else (64, 128)
    for height, width, depth, warps in itertools.product(heights, widths, (64, 128), (4, 8)):
        if height * width <= 128 * 256:
            tile = {"BM": height, "BN": width, "BK": depth, "num_warps": warps, "num_stages": 3}
            yield from ({**tile, "programs": programs} for programs in (132, 264))


def candidates_of_few_rows(kind: str, most_m: int) -> Iterator[dict[str, int]]:
    """Tiles of the kernel for few rows of x."""
    bits, along_k = KINDS_OF_FEW_ROWS[kind]
    widths = (16, 32, 64) if along_k else (256 // bits, 512 // bits)
    pieces = (512 // bits,) if along_k else (32, 64, 128)
    for width, piece, warps, stages in itertools.product(widths, pieces, (4, 8), (3, 4)):
        tile = {"BM": most_m, "BN": width, "PIECE": piece, "PIECES": warps, "num_warps": warps, "num_stages": stages}
        yield from ({**tile, "programs": programs} for programs in (132, 264, 528))


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
        self._before = kernels._configuration, kernels.hopper.takes
        kernels._configuration = lambda *call: self._tile
        kernels.hopper.takes = lambda *call: False  # that kernel has its own tiles

    def __exit__(self, *error: object) -> None:
        kernels._configuration, kernels.hopper.takes = self._before


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


def fastest(tiles: Iterator[dict[str, int]], problems: list[Any]) -> dict[str, int]:
    """The tile with which the problems take the least time."""
    return min(tiles, key=lambda tile: seconds_of(tile, problems))


def tuned(device: torch.device) -> dict[str, dict[str, Any]]:
    """The entries of the file for the kinds that are tuned."""
    tiles: dict[str, dict[str, Any]] = {"weight_quant_matmul": {}, "weight_quant_matmul of few rows": {}}
    for name, kinds, rows, choice in (
        ("weight_quant_matmul", KINDS, ROWS, candidates),
        ("weight_quant_matmul of few rows", KINDS_OF_FEW_ROWS, FEW_ROWS, candidates_of_few_rows),
    ):
        for kind, (bits, along_k) in kinds.items():
            entries = tiles[name][kind] = []
            for most_m, m in rows.items():
                problems = [calls_of(MatmulProblem(m, k, n, 128, bits), along_k, device) for k, n in SHAPES]
                entries.append({"most_m": most_m, "tile": fastest(choice(kind, most_m), problems)})
                print(f"{name}, {kind}: {entries[-1]}", flush=True)
    return tiles


def main() -> None:
    """Tune on the current GPU."""
    if not torch.cuda.is_available():
        raise SystemExit("tune_cuda: torch.cuda.is_available() is False")
    data = json.loads(kernels._CONFIGURATIONS.read_text())
    data["tuned_on"] = torch.cuda.get_device_name()
    for name, entries in tuned(torch.device("cuda", torch.cuda.current_device())).items():
        data[name] |= entries
    kernels._CONFIGURATIONS.write_text(json.dumps(data, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
