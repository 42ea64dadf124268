# SPDX-License-Identifier: Apache-2.0
"""A losslessly compressed int8 weight against the same weight as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from measure import Variant, copies_for
from problems import Product

import anynpu
from anynpu.formats import compress_weight

_ROUNDING = 2.0**-11  # of float16


@dataclass(frozen=True)
class CompressedProblem(Product):
    """x int8 [M, K] times an int8 weight as per-channel quantisation leaves it, to float16."""

    @cached_property
    def x(self) -> torch.Tensor:
        """[M, K]."""
        generator = torch.Generator().manual_seed(1)
        return torch.randint(-128, 128, (self.m, self.k), dtype=torch.int8, generator=generator)

    @cached_property
    def weight(self) -> torch.Tensor:
        """[N, K], a normal distribution with the largest of about 4 sigma at 127."""
        values = torch.randn(self.n, self.k, generator=torch.Generator().manual_seed(0)) * 30
        return values.round().clamp(-128, 127).to(torch.int8)

    @cached_property
    def scale(self) -> torch.Tensor:
        """[1, N], encoded."""
        return anynpu.trans_quant_param(torch.full((self.n,), 2.0**-12)).reshape(1, -1)

    def expected(self) -> torch.Tensor:
        """The product in float64, which holds the integers exactly."""
        return (self.x.double() @ self.weight.t().double()) * 2.0**-12


def problems(quick: bool) -> Iterator[CompressedProblem]:
    """The shape of the document's example, and layers of a 7B model."""
    yield CompressedProblem(512, 1024, 1024)
    for k, n in [(4096, 4096)] if quick else [(4096, 4096), (4096, 14336)]:
        for m in (1, 256) if quick else (1, 16, 256, 512):
            yield CompressedProblem(m, k, n)


def variants(problem: CompressedProblem) -> Iterator[Variant]:
    """The compressed weight, and quant_matmul with the same one, a transposed view of [N, K]."""
    compressed = compress_weight(problem.weight)
    x, scale = problem.x, problem.scale
    rest = x.nbytes + scale.nbytes + 2 * problem.m * problem.n

    def compressed_call(stream: torch.Tensor) -> Callable[[], torch.Tensor]:
        return lambda: anynpu.compressed_matmul(x, stream, compressed.index, None, scale)

    def plain_call(weight: torch.Tensor) -> Callable[[], torch.Tensor]:
        return lambda: anynpu.quant_matmul(x, weight.t(), scale.reshape(-1), output_dtype=torch.float16)

    for name, call_with, weight in (
        ("anynpu compressed_matmul", compressed_call, compressed.stream),
        ("anynpu quant_matmul", plain_call, problem.weight),
    ):
        yield Variant(
            name=name,
            arithmetic="W8A8",
            calls=[call_with(weight.clone()) for _ in range(copies_for(weight.nbytes))],
            expected=problem.expected,
            tolerance=_ROUNDING,
            bytes=weight.nbytes + rest,
        )
