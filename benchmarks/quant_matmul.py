# SPDX-License-Identifier: Apache-2.0
"""int8 times int8 with a scale for each column: the problems, anynpu's variants, and what torch does instead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from measure import Variant, copies_for
from problems import Product

import anynpu

_SHAPES = [(4096, 4096), (4096, 14336), (14336, 4096)]  # (K, N)
_SLOW_OPERATIONS = 1 << 31  # torch._int_mm takes seconds beyond, where it has no kernel for the CPU


@dataclass(frozen=True)
class Int8Problem(Product):
    """x [M, K] times weights [K, N], both int8, with a scale for each column, to float16."""

    @cached_property
    def x(self) -> torch.Tensor:
        """[M, K]."""
        generator = torch.Generator().manual_seed(0)
        return torch.randint(-128, 128, (self.m, self.k), dtype=torch.int8, generator=generator)

    @cached_property
    def weight(self) -> torch.Tensor:
        """[K, N], the same for every M, as is `scale`."""
        generator = torch.Generator().manual_seed(1)
        return torch.randint(-128, 128, (self.k, self.n), dtype=torch.int8, generator=generator)

    @cached_property
    def scale(self) -> torch.Tensor:
        """[N] in float32."""
        return (torch.rand(self.n, generator=torch.Generator().manual_seed(2)) + 0.5) * 1e-5

    def variant(
        self, name: str, weight: torch.Tensor, prepare: Callable[[torch.Tensor], Callable[[], torch.Tensor]]
    ) -> Variant:
        """``prepare`` turns a copy of ``weight`` [K, N] into the call that multiplies by it."""
        calls = [prepare(weight.clone()) for _ in range(copies_for(weight.nbytes))]
        return self.variant_of_calls(name, weight, calls)

    def variant_of_calls(self, name: str, weight: torch.Tensor, calls: Sequence[Callable[[], torch.Tensor]]) -> Variant:
        """``calls`` multiply by copies of ``weight`` [K, N]."""
        x, scale = self.x, self.scale
        return Variant(
            name=name,
            arithmetic="W8A8",
            calls=calls,
            expected=lambda: (x.double() @ weight.double() * scale.double()).to(torch.float16),
            tolerance=2.0**-11,
            bytes=weight.nbytes + scale.nbytes + x.nbytes + self.m * self.n * 2,
        )


def problems(quick: bool) -> Iterator[Int8Problem]:
    """The example of the document and layers of a large model."""
    yield Int8Problem(512, 1024, 1024)
    for k, n in _SHAPES[:1] if quick else _SHAPES:
        for m in (1, 256) if quick else (1, 16, 64, 256, 1024):
            yield Int8Problem(m, k, n)


def variants(problem: Int8Problem) -> Iterator[Variant]:
    """The operator on the layouts of the weight."""

    def call_with(weight: torch.Tensor) -> Callable[[], torch.Tensor]:
        n = problem.n if weight.dtype == torch.uint8 else None
        return lambda: anynpu.quant_matmul(problem.x, weight, problem.scale, output_dtype=torch.float16, n=n)

    yield problem.variant("anynpu", problem.weight, call_with)
    yield problem.variant("anynpu transposed", problem.weight, lambda weight: call_with(weight.t().contiguous().t()))
    yield problem.variant(
        "anynpu prepacked", problem.weight, lambda weight: call_with(anynpu.weight_quant_prepack(weight))
    )


def peers(problem: Int8Problem) -> Iterator[Variant]:
    """torch's integer product with a multiplication after it, and oneDNN's fused one."""
    x, scale = problem.x, problem.scale

    def int_mm_with(weight: torch.Tensor) -> Callable[[], torch.Tensor]:
        return lambda: torch._int_mm(x, weight).mul(scale).half()

    if problem.m > 16 and problem.operations <= _SLOW_OPERATIONS:  # it wants more than 16 rows
        yield problem.variant("torch._int_mm", problem.weight, int_mm_with)
    # Without VNNI oneDNN adds products of bytes in 16 bits, which saturate: 7-bit weights keep it exact.
    saturates = not torch.cpu._is_vnni_supported()
    weight = problem.weight >> 1 if saturates else problem.weight
    shifted = (x.int() + 128).to(torch.uint8)
    zeros = torch.zeros(problem.n, dtype=torch.int32)

    def qlinear_with(weight: torch.Tensor) -> Callable[[], torch.Tensor]:
        packed = torch.ops.onednn.qlinear_prepack(weight.t().contiguous(), list(x.shape))
        return lambda: torch.ops.onednn.qlinear_pointwise(
            shifted, 1.0, 128, packed, scale, zeros, None, 1.0, 0, torch.float32, "none", [], ""
        ).half()

    yield problem.variant(f"onednn.qlinear{', 7-bit weights' if saturates else ''}", weight, qlinear_with)
