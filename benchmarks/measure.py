# SPDX-License-Identifier: Apache-2.0
"""Timing: every variant of a case in every round, in a new order each round, between probes of the machine's limits."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import roofs
import torch

ROTATED_BYTES = 512 << 20  # weights of one variant together, so that none is still in a cache when its turn comes again
_RESULT_BYTES = 64 << 20  # of all products of one run, which with many rows would take seconds otherwise
_GROUP_SECONDS = 0.03
_PAUSE_SECONDS = 0.01  # until the spinning threads of the last variant have gone to sleep
_CLEAN = 0.9  # of the best compute probe: below, another process or a sibling thread had the cores


@dataclass
class Variant:
    """One way to compute a case. ``calls[i]`` runs it once on copy i of its weights and returns the result."""

    name: str
    arithmetic: str  # what is compared with what, e.g. "W4A16" or "W4A8"
    calls: Sequence[Callable[[], torch.Tensor]]
    expected: Callable[[], torch.Tensor]
    tolerance: float  # of the result's root mean square error, relative to the root mean square of `expected`
    bytes: int  # that one operation has to read and write
    operations_per_call: int = 1


@dataclass
class Timing:
    """Medians over the clean rounds; ``seconds`` holds one value a round, in the order of the rounds."""

    variant: Variant
    error: float
    seconds: list[float]
    limits: dict[str, list[float]] = field(default_factory=dict)  # likewise, measured before and after the variant

    @property
    def median(self) -> float:
        """Seconds of one operation."""
        return statistics.median(self.seconds)

    def limit(self, name: str) -> float:
        """The limit of which the variant at its median reaches the median share of all rounds; 0: not measured."""
        rates = self.limits.get(name, [0.0])
        if not all(rates):
            return 0.0
        shares = [1 / (seconds * rate) for seconds, rate in zip(self.seconds, rates, strict=True)]
        return 1 / (self.median * statistics.median(shares))


@dataclass
class Comparison:
    """All variants of a case with the limits measured in the same rounds."""

    timings: list[Timing]
    limits: dict[str, float]
    rounds: int
    clean_rounds: int
    handover: tuple[float, float] = (0.0, 0.0)  # nanoseconds from CPU to CPU, the least and the most of all rounds


def copies_for(weight_bytes: int) -> int:
    """How many copies of a weight a variant rotates over."""
    return max(2, -(-ROTATED_BYTES // weight_bytes))


def copies_in_one_model(weight_bytes: int, result_bytes: int) -> int:
    """The same for a variant that multiplies by all copies in one run: fewer where their results are large."""
    return min(copies_for(weight_bytes), max(2, _RESULT_BYTES // result_bytes))


def relative_error(result: torch.Tensor, expected: torch.Tensor) -> float:
    """Root mean square of the error over that of the expected values."""
    result, expected = result.cpu().double(), expected.double()
    return float((result - expected).norm() / expected.norm())


def require_correct(variant: Variant) -> float:
    """The variant's error; raises when it is above its tolerance, so that a wrong result is never timed."""
    error = relative_error(variant.calls[0](), variant.expected())
    if not error <= variant.tolerance:
        raise RuntimeError(f"{variant.name}: relative error {error:.2g}, allowed {variant.tolerance:.2g}; not timed")
    return error


class _Rotation:
    """Calls the copies of one variant in turn, across all rounds."""

    def __init__(self, variant: Variant) -> None:
        self._variant = variant
        self._next = 0
        for _ in range(min(len(variant.calls), 3)):
            self._seconds()
        self._group = max(1, min(200, int(_GROUP_SECONDS / self._seconds())))

    def _seconds(self) -> float:
        call = self._variant.calls[self._next]
        self._next = (self._next + 1) % len(self._variant.calls)
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    def sample(self) -> float:
        """Median seconds of one operation over a group of calls."""
        group = [self._seconds() for _ in range(self._group)]
        return statistics.median(group) / self._variant.operations_per_call


def _rested_probe(name: str, threads: int) -> float:
    time.sleep(_PAUSE_SECONDS)
    return roofs.probe(name, threads)


def compare(variants: Sequence[Variant], limits: Sequence[str], threads: int, rounds: int) -> Comparison:
    """Checks and times the variants; ``limits`` names the roofs to probe between them."""
    errors = [require_correct(variant) for variant in variants]
    rotations = [_Rotation(variant) for variant in variants]
    samples: list[list[float]] = [[] for _ in variants]
    beside: list[dict[str, list[float]]] = [{name: [] for name in limits} for _ in variants]
    cleanliness, handovers = [], []
    for _ in range(rounds):
        handovers.append(roofs.handover())
        first = _rested_probe("fp32", threads)
        before = {name: _rested_probe(name, threads) for name in limits}
        for index in random.sample(range(len(variants)), len(variants)):
            time.sleep(_PAUSE_SECONDS)
            samples[index].append(rotations[index].sample())
            after = {name: _rested_probe(name, threads) for name in limits}
            for name in limits:
                beside[index][name].append((before[name] + after[name]) / 2)
            before = after
        cleanliness.append(min(first, _rested_probe("fp32", threads)))
    best = max(cleanliness)
    clean = [index for index, rate in enumerate(cleanliness) if rate >= _CLEAN * best]
    kept = clean if len(clean) >= 3 else list(range(rounds))

    def chosen(values: list[float]) -> list[float]:
        return [values[index] for index in kept]

    timings = [
        Timing(variant, error, chosen(sample), {name: chosen(rates) for name, rates in probes.items()})
        for variant, error, sample, probes in zip(variants, errors, samples, beside, strict=True)
    ]
    medians = {name: statistics.median(rate for t in timings for rate in t.limits[name]) for name in limits}
    between = [handovers[index] for index in kept]
    return Comparison(timings, medians, rounds, len(clean), (min(between), max(between)))
