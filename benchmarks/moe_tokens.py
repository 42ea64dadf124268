# SPDX-License-Identifier: Apache-2.0
"""What a mixture of experts does to its tokens: sorting and quantising them, and the step between its two products."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from measure import Variant, copies_for

import anynpu


@dataclass(frozen=True)
class RoutingProblem:
    """x [M, H] in bfloat16 to int8 rows [M * top_k, H] in the order of their experts, a scale for each row."""

    m: int
    hidden: int
    experts: int
    top_k: int
    operations = 0  # it is bound by memory

    @property
    def name(self) -> str:
        """For tables and the command line."""
        return f"m{self.m}_h{self.hidden}_e{self.experts}_top{self.top_k}"

    @cached_property
    def x(self) -> torch.Tensor:
        """[M, H]."""
        return torch.randn(self.m, self.hidden, generator=torch.Generator().manual_seed(0)).bfloat16()

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """Of anynpu.moe_init_routing, but for x."""
        scores = torch.rand(self.m, self.experts, generator=torch.Generator().manual_seed(1))
        experts = scores.topk(self.top_k).indices.int()
        return {"expert_idx": experts, "expert_num": self.experts, "expert_tokens_num_type": 1, "quant_mode": 1}

    @property
    def moved(self) -> int:
        """Bytes read but for x, and written."""
        return self.m * self.top_k * (4 + self.hidden + 4)

    def expected(self) -> torch.Tensor:
        """The rows."""
        return anynpu.reference.moe_init_routing(self.x, **self.arguments)[0]

    def variant(self, name: str, function: Callable[..., torch.Tensor]) -> Variant:
        """``function`` takes x and the arguments by name and returns the rows."""
        return _variant(name, "bf16 to int8", function, self)


@dataclass(frozen=True)
class ActivationProblem:
    """int32 sums [rows, 2 H] of int8 products, dequantised, SwiGLU, to int8 [rows, H] with a scale for each row."""

    rows: int
    hidden: int
    operations = 0  # it is bound by memory

    @property
    def name(self) -> str:
        """For tables and the command line."""
        return f"rows{self.rows}_h{self.hidden}"

    @cached_property
    def x(self) -> torch.Tensor:
        """[rows, 2 H]."""
        shape = (self.rows, 2 * self.hidden)
        return torch.randint(-20000, 20000, shape, dtype=torch.int32, generator=torch.Generator().manual_seed(0))

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """Of anynpu.dequant_swiglu_quant, but for x."""
        generator = torch.Generator().manual_seed(1)
        return {
            "weight_scale": (torch.rand(2 * self.hidden, generator=generator) + 0.5) * 1e-3,
            "activation_scale": torch.rand(self.rows, generator=generator) + 0.5,
            "activate_left": True,
            "quant_mode": 1,
        }

    @property
    def moved(self) -> int:
        """Bytes read but for x, and written."""
        return self.rows * (self.hidden + 8)

    def expected(self) -> torch.Tensor:
        """The codes."""
        return anynpu.reference.dequant_swiglu_quant(self.x, **self.arguments)[0]

    def variant(self, name: str, function: Callable[..., torch.Tensor]) -> Variant:
        """``function`` takes x and the arguments by name and returns the codes."""
        return _variant(name, "int32 to int8", function, self)


TOLERANCE = 2.0**-8  # a code may be one off at a tie


def _variant(
    name: str, arithmetic: str, function: Callable[..., torch.Tensor], problem: RoutingProblem | ActivationProblem
) -> Variant:
    def call_with(x: torch.Tensor) -> Callable[[], torch.Tensor]:
        return lambda: function(x, **problem.arguments)

    calls = [call_with(problem.x.clone()) for _ in range(copies_for(problem.x.nbytes))]
    return Variant(name, arithmetic, calls, problem.expected, TOLERANCE, problem.x.nbytes + problem.moved)


def routing_problems(quick: bool) -> Iterator[RoutingProblem]:
    """One token, a batch at decoding, and a prefill."""
    for m in (8, 512) if quick else (1, 8, 64, 512):
        yield RoutingProblem(m, 4096, 64, 8)


def activation_problems(quick: bool) -> Iterator[ActivationProblem]:
    """The rows of the same batches."""
    for rows in (64, 4096) if quick else (8, 64, 512, 4096):
        yield ActivationProblem(rows, 2048)


def routing_variants(problem: RoutingProblem) -> Iterator[Variant]:
    """The operator, through its public function."""
    yield problem.variant("anynpu", lambda x, **arguments: anynpu.moe_init_routing(x, **arguments)[0])


def activation_variants(problem: ActivationProblem) -> Iterator[Variant]:
    """The operator, through its public function."""
    yield problem.variant("anynpu", lambda x, **arguments: anynpu.dequant_swiglu_quant(x, **arguments)[0])


def routing_peers(problem: RoutingProblem) -> Iterator[Variant]:
    """Tensor operations: a sort, quantisation of each token, a gather, and the counts."""

    def with_tensor_operations(
        x: torch.Tensor, expert_idx: torch.Tensor, expert_num: int, **modes: int
    ) -> torch.Tensor:
        chosen = expert_idx.flatten()
        order = chosen.argsort(stable=True)
        torch.bincount(chosen, minlength=expert_num)
        order.argsort()
        codes, scale = _quantised(x.float())
        token = order // expert_idx.shape[1]
        scale[token]
        return codes[token]

    yield problem.variant("torch eager", with_tensor_operations)


def activation_peers(problem: ActivationProblem) -> Iterator[Variant]:
    """The formula in tensor operations."""

    yield problem.variant("torch eager", activation_formula)


def activation_formula(
    x: torch.Tensor, weight_scale: torch.Tensor, activation_scale: torch.Tensor, **modes: int
) -> torch.Tensor:
    """The codes of dequant_swiglu_quant for the arguments of an ActivationProblem."""
    gate, linear = (x * weight_scale * activation_scale[:, None]).chunk(2, -1)
    return _quantised(torch.nn.functional.silu(gate) * linear)[0]


def _quantised(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scale = values.abs().amax(-1, keepdim=True) / 127
    return (values / scale).round().to(torch.int8), scale
