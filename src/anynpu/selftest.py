# SPDX-License-Identifier: Apache-2.0
"""Runs the sample calls of every operator on every device and instruction set tier and compares with the reference."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from anynpu import _native
from anynpu._register import Operator, Sample, operators


@dataclass(frozen=True)
class Result:
    """One operator on one device and tier (CUDA has no tiers)."""

    operator: str
    device: str
    tier: str | None
    samples: int
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0


def tiers() -> list[str]:
    """The instruction set tiers that this machine can run, best first."""
    return [tier for tier in _native.ISA_TIERS if _native.isa_refusal(tier) is None]


def refused_tiers() -> dict[str, str]:
    """The other tiers, each with the reason."""
    reasons = {tier: _native.isa_refusal(tier) for tier in _native.ISA_TIERS}
    return {tier: reason for tier, reason in reasons.items() if reason is not None}


def run(names: Sequence[str] = ()) -> Iterator[Result]:
    """Yields a result for each operator (all, or the named ones), tier and device."""
    chosen = [operators[name] for name in names or sorted(operators)]
    available = tiers()
    try:
        for operator in chosen:
            for tier in available:
                _native.set_max_isa(tier)
                yield _check(operator, "cpu", tier)
    finally:
        cap = os.environ.get("ANYNPU_MAX_ISA")
        _native.set_max_isa(cap if cap in _native.ISA_TIERS else None)
    for operator in chosen:
        if torch.cuda.is_available():
            yield _check(operator, "cuda", None)


def _check(operator: Operator, device: str, tier: str | None) -> Result:
    start = time.perf_counter()
    samples = list(operator.samples())
    failures = [f"{sample.name}: {reason}" for sample in samples if (reason := _failure(operator, sample, device))]
    return Result(operator.name, device, tier, len(samples), failures, time.perf_counter() - start)


def _failure(operator: Operator, sample: Sample, device: str) -> str | None:
    """Why what the operator makes of the sample is wrong, or None. An exception is a failure like any other."""
    try:
        expected = _outputs(operator, operator.reference, sample.args)
        results = _outputs(operator, operator.overload, _on(device, sample.args))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    bounds: Sequence[torch.Tensor | None] = [None] * len(expected)
    if operator.error_bound is not None:
        bounds = _as_tuple(operator.error_bound(*sample.args))
    reasons = map(_difference, _on("cpu", results), expected, bounds)
    named = [f"output {index}: {reason}" for index, reason in enumerate(reasons) if reason is not None]
    return named[0] if named else None


def _outputs(operator: Operator, function: Callable, args: tuple) -> tuple[torch.Tensor, ...]:
    """What ``function`` returns and then the arguments that it wrote to, of a call on copies of the tensors."""
    copies = _with_tensors(torch.clone, args)
    results = _as_tuple(function(*copies))
    declared = operator.overload._schema.arguments
    written = [copy for copy, argument in zip(copies, declared, strict=False) if _is_written(argument)]
    return (*results, *written)


def _as_tuple(value: torch.Tensor | tuple | list) -> tuple:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _with_tensors(change: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    """``value``, a tensor or what holds tensors, with ``change`` made to each of them."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, tuple | list):
        parts = [_with_tensors(change, part) for part in value]
        return parts if isinstance(value, list) else tuple(parts)
    return value


def _is_written(argument: torch._C.Argument) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def _on(device: str, values: tuple) -> tuple:
    return _with_tensors(lambda tensor: tensor.to(device), values)


def _difference(result: torch.Tensor, expected: torch.Tensor, bound: torch.Tensor | None) -> str | None:
    """How ``result`` differs from ``expected``: in more than ``bound``, or at all when there is none."""
    if result.shape != expected.shape or result.dtype != expected.dtype:
        return f"expected {expected.dtype} {tuple(expected.shape)}, got {result.dtype} {tuple(result.shape)}"
    right = (result == expected) | ((result != result) & (expected != expected))  # NaN for NaN is right
    if bound is not None:
        right |= (result.double() - expected.double()).abs() <= bound
    wrong = ~right
    if not wrong.any():
        return None
    index = tuple(wrong.nonzero()[0].tolist())
    count = f"{int(wrong.sum())} of {wrong.numel()} elements differ"
    return f"{count}, the first at {list(index)}: expected {expected[index].item()}, got {result[index].item()}"
