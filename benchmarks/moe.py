# SPDX-License-Identifier: Apache-2.0
"""The second matrix product of a mixture of experts with the combine: the problem and anynpu's variant."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from measure import Variant, copies_for

import anynpu


@dataclass(frozen=True)
class MoeProblem:
    """int8 rows [M * top_k, K] of M tokens, int4 weights [E, K, N]; the rows of an expert follow one another."""

    experts: int
    top_k: int
    m: int
    k: int
    n: int
    group_size: int  # 0: a scale for each column

    @property
    def name(self) -> str:
        """For tables and the command line."""
        group = f"g{self.group_size}" if self.group_size else "channel"
        return f"e{self.experts}_top{self.top_k}_m{self.m}_k{self.k}_n{self.n}_{group}"

    @property
    def operations(self) -> int:
        """Multiplications and additions."""
        return 2 * self.m * self.top_k * self.k * self.n

    @cached_property
    def weight(self) -> torch.Tensor:
        """[E, K, N] in int8, values in [-8, 7]."""
        shape = (self.experts, self.k, self.n)
        return torch.randint(-8, 8, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(0))

    @cached_property
    def scale(self) -> torch.Tensor:
        """[E, K / group_size or 1, N] in float32, with values that bfloat16 holds too."""
        shape = (self.experts, self.k // self.group_size if self.group_size else 1, self.n)
        return (torch.randint(128, 256, shape, generator=torch.Generator().manual_seed(1)) * 2.0**-15).float()

    @cached_property
    def _routing(self) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(2)
        chosen = torch.rand(self.m, self.experts, generator=generator).topk(self.top_k).indices.flatten()
        order = chosen.argsort(stable=True)
        return torch.bincount(chosen, minlength=self.experts), order // self.top_k

    @property
    def counts(self) -> torch.Tensor:
        """[E] rows of each expert."""
        return self._routing[0]

    @property
    def row_index(self) -> torch.Tensor:
        """[M * top_k] the token of each row."""
        return self._routing[1]

    @cached_property
    def x(self) -> torch.Tensor:
        """[M * top_k, K] int8."""
        shape = (self.m * self.top_k, self.k)
        return torch.randint(-127, 128, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(3))

    @cached_property
    def row_scale(self) -> torch.Tensor:
        """[M * top_k] float32: the scale of a row of x times the router's weight."""
        return torch.rand(self.m * self.top_k, generator=torch.Generator().manual_seed(4)) + 0.5

    def active(self) -> float:
        """The part of the experts that have rows."""
        return float((self.counts > 0).double().mean())

    def dense(self, expert: int) -> torch.Tensor:
        """[K, N] in float32: what the integers and scales of an expert stand for."""
        size = self.group_size or self.k
        return self.weight[expert].float() * self.scale[expert].repeat_interleave(size, 0)

    def expected(self) -> torch.Tensor:
        """[M, N] in float64."""
        y, first = torch.zeros(self.m, self.n, dtype=torch.float64), 0
        for expert, count in enumerate(self.counts.tolist()):
            rows = slice(first, first + count)
            first += count
            if count:
                product = self.x[rows].double() @ self.dense(expert).double() * self.row_scale[rows].double()[:, None]
                y.index_add_(0, self.row_index[rows], product)
        return y

    def sums(self) -> torch.Tensor:
        """[M * top_k, N] in float64: the rows of each expert times its integers."""
        rows = self.x.double().split(self.counts.tolist())
        return torch.cat([x @ w.double() for x, w in zip(rows, self.weight, strict=True)])

    def variant(
        self, name: str, arithmetic: str, parts: list, product: Callable, tolerance: float, weight_bytes: int
    ) -> Variant:
        """A loop over the experts; ``product(x, *parts[expert])`` returns what an expert makes of its float rows."""
        copies = [[tuple(tensor.clone() for tensor in part) for part in parts] for _ in range(copies_for(weight_bytes))]
        return self.variant_of_copies(name, arithmetic, copies, product, tolerance, weight_bytes)

    def variant_of_copies(
        self, name: str, arithmetic: str, copies: list, product: Callable, tolerance: float, weight_bytes: int
    ) -> Variant:
        """The same over ``copies``, each of which holds the parts of all experts."""
        counts = self.counts.tolist()

        def call_with(parts: list) -> Callable[[], torch.Tensor]:
            def call() -> torch.Tensor:
                y, first = torch.zeros(self.m, self.n), 0
                for expert, count in enumerate(counts):
                    if count:
                        rows = slice(first, first + count)
                        first += count
                        values = product(self.x[rows], *parts[expert]) * self.row_scale[rows, None]
                        y.index_add_(0, self.row_index[rows], values)
                return y

            return call

        calls = [call_with(parts) for parts in copies]
        return Variant(
            name, arithmetic, calls, self.expected, tolerance, int(weight_bytes * self.active()) + self.bytes
        )

    @property
    def bytes(self) -> int:
        """Of x and y."""
        return self.x.nbytes + self.m * self.n * 4


def problems(quick: bool) -> Iterator[MoeProblem]:
    """The shapes of a large model's experts at decoding and prefill, and many small experts at decoding."""
    for experts, top_k in ((8, 2),) if quick else ((8, 1), (8, 2), (16, 4)):
        for m in (8, 512) if quick else (8, 64, 512):
            yield MoeProblem(experts, top_k, m, 2048, 7168, group_size=0)
            if not quick:
                yield MoeProblem(experts, top_k, m, 2048, 7168, group_size=128)
    yield MoeProblem(64, 8, 4, 1024, 2048, group_size=128)


def variants(problem: MoeProblem) -> Iterator[Variant]:
    """anynpu with the packed weights as they come."""
    weight = anynpu.int4_pack(problem.weight.int())
    scale = anynpu.pack_scale(problem.scale)
    bias = anynpu.make_w4a8_bias(weight, problem.scale)
    ones = torch.ones_like(problem.row_scale)

    def call_with(weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor) -> Callable[[], torch.Tensor]:
        return lambda: anynpu.grouped_matmul_combine(
            problem.x,
            weight,
            scale,
            problem.counts,
            problem.row_index,
            bias,
            pertoken_scale=problem.row_scale,
            logit=ones,
            output_bs=problem.m,
        )

    weight_bytes = weight.nbytes + scale.nbytes + bias.nbytes
    yield Variant(
        name="anynpu",
        arithmetic="W4A8",
        calls=[call_with(weight.clone(), scale.clone(), bias.clone()) for _ in range(copies_for(weight_bytes))],
        expected=problem.expected,
        tolerance=1e-5,
        bytes=int(weight_bytes * problem.active()) + problem.bytes,
    )


def sums_problems(quick: bool) -> Iterator[MoeProblem]:
    """The first matrix product of the same experts: decoding and prefill, and many small experts at decoding."""
    for m in (8,) if quick else (8, 64, 512):
        yield MoeProblem(8, 1, m, 2048, 7168, group_size=0)
    yield MoeProblem(64, 8, 4, 1024, 2048, group_size=0)


def sums_variants(problem: MoeProblem) -> Iterator[Variant]:
    """int8 rows of every expert times its int8 weight, in one call: the int32 sums."""

    def call_with(weight: torch.Tensor) -> Callable[[], torch.Tensor]:
        options = {"split_item": 2, "group_type": 0, "group_list_type": 1, "output_dtype": torch.int32}
        return lambda: anynpu.grouped_matmul([problem.x], [weight], problem.counts, **options)[0]

    weight = problem.weight
    yield Variant(
        name="anynpu",
        arithmetic="W8A8",
        calls=[call_with(weight.clone()) for _ in range(copies_for(weight.nbytes))],
        expected=problem.sums,
        tolerance=0,
        bytes=int(weight.nbytes * problem.active()) + problem.x.nbytes + 4 * len(problem.x) * problem.n,
    )
