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
from anynpu._register import operators


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
    name: str,
    arithmetic: str,
    function: Callable[..., torch.Tensor],
    problem: RoutingProblem | ActivationProblem | CallProblem,
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


@dataclass(frozen=True)
class CallProblem:
    """A call of an operator that is made of torch operators on CUDA; these are its peer."""

    operator: str
    name: str
    arithmetic: str
    make: Callable[[], tuple[torch.Tensor, dict[str, Any]]]  # the first argument, and the others by name
    operations = 0  # it is bound by memory

    @cached_property
    def _arguments(self) -> tuple[torch.Tensor, dict[str, Any]]:
        return self.make()

    @property
    def x(self) -> torch.Tensor:
        """The first argument."""
        return self._arguments[0]

    @property
    def arguments(self) -> dict[str, Any]:
        """The others."""
        return self._arguments[1]

    @property
    def moved(self) -> int:
        """Bytes read but for x, and written."""
        results = operators[self.operator].fake(self.x, **self.arguments)
        tensors = [*self.arguments.values(), *(results if isinstance(results, tuple) else (results,))]
        return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, torch.Tensor))

    def expected(self) -> torch.Tensor:
        """The first result."""
        return _first(operators[self.operator].reference(self.x, **self.arguments))

    def variant(self, name: str, function: Callable[..., Any]) -> Variant:
        """``function`` takes the arguments of the operator."""
        return _variant(name, self.arithmetic, lambda x, **arguments: _first(function(x, **arguments)), self)


def _first(results: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    return results[0] if isinstance(results, tuple) else results


def swiglu_problems(quick: bool) -> Iterator[CallProblem]:
    """Rows of the first product of a layer."""
    for rows in (64, 512) if quick else (1, 8, 64, 512, 4096):
        yield CallProblem(
            "swiglu", f"rows{rows}_h2048", "bf16", lambda rows=rows: (torch.randn(rows, 4096).bfloat16(), {})
        )


def gating_problems(quick: bool) -> Iterator[CallProblem]:
    """Logits of a router."""
    for m, experts in ((8, 64), (512, 64)) if quick else ((1, 64), (8, 64), (512, 64), (512, 256), (4096, 128)):
        yield CallProblem(
            "moe_gating_topk_softmax", f"m{m}_e{experts}_top8", "fp32",
            lambda m=m, experts=experts: (torch.randn(m, experts), {"k": 8, "renorm": 1}),
        )  # fmt: skip


def finalize_problems(quick: bool) -> Iterator[CallProblem]:
    """Rows of eight experts a token, added up."""

    def make(m: int, hidden: int) -> tuple[torch.Tensor, dict[str, Any]]:
        rows, index = torch.randn(8 * m, hidden).bfloat16(), torch.randperm(8 * m).int()
        absent = dict.fromkeys(("skip1", "skip2", "bias"))
        return rows, absent | {"scales": torch.rand(m, 8), "row_idx": index, "drop_pad_mode": 2}

    for m, hidden in ((8, 2048), (64, 2048)) if quick else ((1, 4096), (8, 2048), (64, 2048), (512, 2048)):
        yield CallProblem(
            "moe_finalize_routing", f"m{m}_h{hidden}_top8", "bf16", lambda m=m, hidden=hidden: make(m, hidden)
        )


def call_variants(problem: CallProblem) -> Iterator[Variant]:
    """The operator, through its public function."""
    yield problem.variant("anynpu", getattr(anynpu, problem.operator))


def call_peers(problem: CallProblem) -> Iterator[Variant]:
    """Torch operators, as on CUDA."""
    yield problem.variant("torch operators", operators[problem.operator].cuda_kernel)
