# SPDX-License-Identifier: Apache-2.0
"""Timing on a GPU: all calls of a variant, each with its own copy of the weights, in one CUDA graph between events."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence

import torch
from measure import Comparison, Timing, Variant, require_correct

import anynpu

UNITS = {"copy": "GB/s", "bf16": "Gflop/s", "int8": "Gop/s"}
_COPIED_BYTES = 1 << 30
_ROOF_SIZE = 8192  # of the square matrices that the matrix rates are measured with
_WARM_UP = 3


def captured(calls: Sequence[Callable[[], torch.Tensor]]) -> Callable[[], float]:
    """Captures the calls in order. What is returned replays them, and tells the seconds of one."""
    for call in calls[:_WARM_UP]:
        call()
    torch.cuda.synchronize()
    graph, (begin, end) = torch.cuda.CUDAGraph(), (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.cuda.graph(graph):
        for call in calls:
            call()

    def replay() -> float:
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / len(calls)

    return replay


def roofs(device: torch.device) -> dict[str, tuple[Callable[[], float], float]]:
    """The limits by name: how long one probe takes, and what it does in that time, in units of 1e9."""
    source, target = torch.ones(2, _COPIED_BYTES // 4, dtype=torch.int32, device=device)
    reals = torch.randn(2, _ROOF_SIZE, _ROOF_SIZE, device=device).bfloat16()
    codes = torch.randint(-128, 128, (2, _ROOF_SIZE, _ROOF_SIZE), device=device).to(torch.int8)
    operations = 2 * _ROOF_SIZE**3 / 1e9
    return {
        # Not copy_: in a graph that is a memcpy, which is a third slower than a kernel.
        "copy": (captured([lambda: torch.neg(source, out=target)]), 2 * _COPIED_BYTES / 1e9),
        "bf16": (captured([lambda: reals[0] @ reals[1].t()]), operations),
        "int8": (captured([lambda: torch._int_mm(codes[0], codes[1].t())]), operations),
    }


def compare(
    variants: Sequence[Variant], limits: dict[str, tuple[Callable[[], float], float]], rounds: int
) -> Comparison:
    """Checks and times the variants, and the limits between them, every round in a new order."""
    errors = [require_correct(variant) for variant in variants]
    replays = [captured(variant.calls) for variant in variants]
    samples: list[list[float]] = [[] for _ in variants]
    probes: dict[str, list[float]] = {name: [] for name in limits}
    for _ in range(rounds):
        steps: list[int | str] = [*range(len(variants)), *limits]
        random.shuffle(steps)
        for step in steps:
            if isinstance(step, str):
                probe, amount = limits[step]
                probes[step].append(amount / probe())
            else:
                samples[step].append(replays[step]() / variants[step].operations_per_call)
    anynpu.check_device_errors()
    timings = [Timing(*parts) for parts in zip(variants, errors, samples, strict=True)]
    medians = {name: statistics.median(values) for name, values in probes.items()}
    return Comparison(timings, medians, rounds, rounds)
