# SPDX-License-Identifier: Apache-2.0
"""Attention of the many queries of a prompt to each other: the problems, anynpu's variants and torch's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from measure import Variant

import anynpu

_SHORT = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


@dataclass(frozen=True)
class PromptProblem:
    """S positions, each of which sees itself and those before."""

    batch: int
    length: int
    heads: tuple[int, int]
    head_size = 128

    @property
    def name(self) -> str:
        """For tables and the command line."""
        return f"b{self.batch}_s{self.length}_h{self.heads[0]}_{self.heads[1]}"

    @property
    def operations(self) -> int:
        """Of both products, of what is seen alone."""
        seen = self.length * (self.length + 1) // 2
        return 4 * self.batch * self.heads[0] * self.head_size * seen

    @cached_property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """q, k and v, [B, S, heads, D], of values that all dtypes hold."""
        shapes = [(self.batch, self.length, self.heads[i], self.head_size) for i in (0, 1, 1)]
        return tuple(torch.randn(shape).bfloat16().float() for shape in shapes)

    @cached_property
    def expected(self) -> torch.Tensor:
        """[B, S, heads, D]."""
        return anynpu.reference.fused_attention(*self.tensors, after=0)[0]

    def variant(self, name: str, dtype: torch.dtype, function: Callable[..., torch.Tensor]) -> Variant:
        """``function`` takes q, k and v, which a model has just computed, and returns [B, S, heads, D]."""
        q, k, v = (tensor.to(dtype) for tensor in self.tensors)
        return Variant(
            name=f"{name} {_SHORT[dtype]}",
            arithmetic=_SHORT[dtype],
            calls=[lambda: function(q, k, v)],
            expected=lambda: self.expected,
            tolerance=2.0**-8,  # bfloat16 rounds the weights, if they are kept in it, and the result
            bytes=2 * (q.nbytes + k.nbytes),
        )


def problems(quick: bool) -> Iterator[PromptProblem]:
    """Prompts of 32 query and 8 KV heads."""
    for length in (256,) if quick else (256, 1024):
        yield PromptProblem(1, length, (32, 8))


def variants(problem: PromptProblem) -> Iterator[Variant]:
    """The operator, through its public function."""
    for dtype in _SHORT:
        yield problem.variant("anynpu", dtype, lambda q, k, v: anynpu.fused_attention(q, k, v, after=0)[0])


def peers(problem: PromptProblem) -> Iterator[Variant]:
    """torch's fused attention."""
    for dtype in _SHORT:
        yield problem.variant("torch SDPA", dtype, _sdpa)


def _sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    heads_first = (tensor.transpose(1, 2) for tensor in (q, k, v))
    attention = torch.nn.functional.scaled_dot_product_attention
    return attention(*heads_first, is_causal=True, enable_gqa=True).transpose(1, 2)
