# SPDX-License-Identifier: Apache-2.0
"""AMD's zentorch: int4 weights with bfloat16 (WOQ) or dynamically quantised activations (W4A8), and int8 products.

It reorders a weight at its first use and finds what it made by the address of the weight, even when other numbers lie
there by then. So weights given to it are never freed, all M of a shape share them, and each is used once beforehand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache

import torch
from measure import Variant, copies_for
from moe import MoeProblem
from problems import MatmulProblem
from quant_matmul import Int8Problem

from peers.torch_operators import why_not_loaded

NAME = "zentorch"
_PER_ROW = 2.0**-6  # int8 activations: a row has one scale, half of 1/127 of its largest value
_OF_INT8_ROWS = 2.0**-7  # bfloat16 results; a row whose largest integer is not 127 is rounded anew


def unavailable() -> str | None:
    """Its int4 products fail without AVX-512."""
    if not torch.cpu._is_avx512_supported():
        return "needs AVX-512"
    return why_not_loaded("zentorch", "libzentorch.so", "pip install --no-deps zentorch==2.13.0.2")


def weight_quant_matmul(problem: MatmulProblem) -> Iterator[Variant]:
    """Both of its products of bfloat16 rows and int4 weights."""
    if problem.bits == 4 and problem.group_size:
        yield _dynamic_qlinear(problem)
        yield _woq_linear(problem)


def int4_linear(problem: MatmulProblem) -> Iterator[Variant]:
    """Its product of rows that it quantises."""
    yield _dynamic_qlinear(problem)


def quant_matmul(problem: Int8Problem) -> Iterator[Variant]:
    """`zentorch_qlinear` reads the int8 rows as they are; it has no float16 result, so that one follows."""
    one, zero = torch.ones(1), torch.zeros(1, dtype=torch.int32)

    def call_with(weight: torch.Tensor) -> Callable[[], torch.Tensor]:
        return lambda: torch.ops.zentorch.zentorch_qlinear(
            problem.x, weight, one, zero, problem.scale, None, None, None, None, torch.float32
        ).half()

    calls = [call_with(weight) for weight in _int8_copies(problem.k, problem.n)]
    yield problem.variant_of_calls("zentorch_qlinear", problem.weight, _reordered(calls))


def grouped_matmul_combine(problem: MoeProblem) -> Iterator[Variant]:
    """Its W4A8 product in a loop; the int8 rows go in as bfloat16 and are quantised again."""
    copies = _expert_copies(problem.experts, problem.k, problem.n, problem.group_size)

    def product(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return torch.ops.zentorch.zentorch_dynamic_qlinear(x.bfloat16(), weight, scale).float()

    weight_bytes = sum(tensor.nbytes for part in copies[0] for tensor in part)
    variant = problem.variant_of_copies(
        "zentorch_dynamic_qlinear, a loop", "W4A8", copies, product, _OF_INT8_ROWS, weight_bytes
    )
    _reordered(variant.calls)
    yield variant


def _packed(weight: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight [K, N] of values in [-8, 7], as [N, K / 8] words, and its scales."""
    return torch.ops.zentorch.zentorch_woq_repack_weight(weight.t().to(torch.int8).contiguous()), scale.bfloat16()


@cache
def _int4_copies(k: int, n: int, group_size: int, operator: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Copies of the weight of all problems of a shape; `operator` alone uses them."""
    problem = MatmulProblem(1, k, n, group_size, bits=4)
    packed, scale = _packed(problem.weight, problem.scale)
    return [(packed.clone(), scale.clone()) for _ in range(copies_for(packed.nbytes + scale.nbytes))]


@cache
def _int8_copies(k: int, n: int) -> list[torch.Tensor]:
    weight = Int8Problem(1, k, n).weight.t().contiguous()
    return [weight.clone() for _ in range(copies_for(weight.nbytes))]


@cache
def _expert_copies(experts: int, k: int, n: int, group_size: int) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    problem = MoeProblem(experts, 1, 1, k, n, group_size)
    parts = [_packed(weight, scale) for weight, scale in zip(problem.weight, problem.scale, strict=True)]
    copies = copies_for(sum(tensor.nbytes for part in parts for tensor in part))
    return [[(packed.clone().view(torch.int8), scale.clone()) for packed, scale in parts] for _ in range(copies)]


def _reordered(calls: Sequence[Callable[[], torch.Tensor]]) -> Sequence[Callable[[], torch.Tensor]]:
    for call in calls:
        call()
    return calls


def _dynamic_qlinear(problem: MatmulProblem) -> Variant:
    x = problem.x.bfloat16()

    def call_with(packed: torch.Tensor, scale: torch.Tensor) -> Callable[[], torch.Tensor]:
        weight = packed.view(torch.int8)
        return lambda: torch.ops.zentorch.zentorch_dynamic_qlinear(x, weight, scale)

    return _variant(problem, "zentorch_dynamic_qlinear", "W4A8", call_with, _PER_ROW)


def _woq_linear(problem: MatmulProblem) -> Variant:
    x = problem.x.bfloat16()

    def call_with(packed: torch.Tensor, scale: torch.Tensor) -> Callable[[], torch.Tensor]:
        weight = packed.t()
        return lambda: torch.ops.zentorch.zentorch_woq_linear(x, weight, scale, None, None)

    return _variant(problem, "zentorch_woq_linear", "W4A16", call_with, 2.0**-8)


def _variant(problem: MatmulProblem, name: str, arithmetic: str, call_with: Callable, tolerance: float) -> Variant:
    copies = _int4_copies(problem.k, problem.n, problem.group_size, name)
    bytes_of_weight = sum(tensor.nbytes for tensor in copies[0])
    return Variant(
        name=f"{name} bf16",
        arithmetic=arithmetic,
        calls=_reordered([call_with(*copy) for copy in copies]),
        expected=lambda: problem.expected(torch.bfloat16),
        tolerance=tolerance,
        bytes=bytes_of_weight + 2 * problem.m * (problem.k + problem.n),
    )
