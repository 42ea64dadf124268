# SPDX-License-Identifier: Apache-2.0
"""What a call costs besides its arithmetic: tiny calls from Python, and turns with torch's own operators."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable

import torch
from kv_cache import RopeProblem

import anynpu

_ROUNDS = 15


def _mean_seconds(calls: tuple[Callable[[], object], ...], repeats: int) -> float:
    """Of one pass over ``calls``."""
    start = time.perf_counter()
    for _ in range(repeats):
        for call in calls:
            call()
    return (time.perf_counter() - start) / repeats


def _shuffled_medians(passes: dict[str, tuple[Callable[[], object], ...]], repeats: int) -> dict[str, float]:
    samples: dict[str, list[float]] = {name: [] for name in passes}
    order = list(passes)
    for _ in range(_ROUNDS):
        random.shuffle(order)
        for name in order:
            samples[name].append(_mean_seconds(passes[name], repeats))
    return {name: statistics.median(values) for name, values in samples.items()}


def _matmul_call(m: int, k: int, n: int) -> Callable[[], object]:
    x = torch.randn(m, k, dtype=torch.bfloat16)
    weight = anynpu.int4_pack(torch.randint(-8, 8, (k, n), dtype=torch.int32))
    scale = torch.rand(1, n, dtype=torch.bfloat16)
    return lambda: anynpu.weight_quant_matmul(x, weight, scale)


def _rope_call() -> Callable[[], object]:
    args = RopeProblem((1, 1), (32, 8), torch.int32).arguments
    return lambda: anynpu.rope_kv_cache(**args)


def tiny_calls() -> dict[str, float]:
    """Microseconds of calls that compute next to nothing, with a torch operator for comparison."""
    words = torch.zeros(1, 8, dtype=torch.int32)
    x, codes, scale = torch.randn(1, 64), torch.ones(1, 64, dtype=torch.int8), torch.ones(64)
    weight = torch.ones(64, 64, dtype=torch.int8)
    linear = torch.nn.Linear(64, 64)
    passes = {
        "anynpu.int4_pack, 8 values": (lambda: anynpu.int4_pack(words),),
        "anynpu.dynamic_quant, 1x64": (lambda: anynpu.dynamic_quant(x),),
        "anynpu.quant_matmul, 1x64x64": (
            lambda: anynpu.quant_matmul(codes, weight, scale, output_dtype=torch.float16),
        ),
        "anynpu.weight_quant_matmul, 1x64x64": (lambda: anynpu.weight_quant_matmul(x, weight, scale),),
        "anynpu.rope_kv_cache, one token of 6144": (_rope_call(),),
        "torch.nn.Linear, 1x64x64": (lambda: linear(x),),
    }
    return {name: 1e6 * seconds for name, seconds in _shuffled_medians(passes, repeats=500).items()}


def alternation() -> dict[str, float]:
    """Microseconds of a threaded anynpu call and a threaded torch call: each alone, and taking turns."""
    ours = _matmul_call(1, 1024, 1024)
    a, b = torch.randn(1 << 17), torch.randn(1 << 17)  # enough for torch to use several threads

    def theirs() -> torch.Tensor:
        return torch.add(a, b)

    passes = {"anynpu alone": (ours,), "torch alone": (theirs,), "in turns, both": (ours, theirs)}
    result = {name: 1e6 * seconds for name, seconds in _shuffled_medians(passes, repeats=50).items()}
    result["extra"] = result["in turns, both"] - result["anynpu alone"] - result["torch alone"]
    return result
