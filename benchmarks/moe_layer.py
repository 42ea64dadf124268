# SPDX-License-Identifier: Apache-2.0
"""A whole layer of experts on int8 tokens, each operator of its chain, and the same layer in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from measure import Variant, copies_for
from torch.utils._python_dispatch import TorchDispatchMode

import anynpu
from anynpu.nn import QuantExperts, QuantMoE

_CONFIGS = {"W8A8": anynpu.W8A8(), "W4A8": anynpu.W4A8(group_size=0)}
_INT8_ROUNDING = 2.0**-4  # of tokens, and of what lies between the products, a few values of which are large


@dataclass(frozen=True)
class LayerProblem:
    """M tokens of ``hidden`` in bfloat16, of which each goes to ``top_k`` of ``experts``."""

    m: int
    hidden: int
    intermediate: int
    experts: int
    top_k: int
    operations = 0  # the rows of single operators would show those of the layer

    @property
    def name(self) -> str:
        """For tables and the command line."""
        return f"m{self.m}_h{self.hidden}_i{self.intermediate}_e{self.experts}_top{self.top_k}"

    @cached_property
    def x(self) -> torch.Tensor:
        """[M, H]."""
        return _normal(0, self.m, self.hidden).bfloat16()

    @cached_property
    def router(self) -> torch.Tensor:
        """[E, H] in float32."""
        return _normal(1, self.experts, self.hidden)

    @cached_property
    def weights(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Of gate and up [E, 2 I, H] and down [E, H, I], in bfloat16."""
        gate_up = _normal(2, self.experts, 2 * self.intermediate, self.hidden) * self.hidden**-0.5
        down = _normal(3, self.experts, self.hidden, self.intermediate) * self.intermediate**-0.5
        return gate_up.bfloat16(), down.bfloat16()

    def active(self) -> float:
        """The part of the experts that have tokens."""
        return self._route()[1].unique().numel() / self.experts

    def _route(self) -> tuple[torch.Tensor, torch.Tensor]:
        logits, chosen = torch.nn.functional.linear(self.x.float(), self.router).topk(self.top_k)
        return logits.softmax(-1), chosen

    def with_a_loop(self, gate_up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
        """[M, H] in the dtype of the weights: one expert after the other, as models have it."""
        weights, chosen = self._route()
        x = self.x.to(gate_up.dtype)
        y = torch.zeros_like(x)
        for expert in chosen.unique().tolist():
            token, choice = torch.where(chosen == expert)
            gate, up = torch.nn.functional.linear(x[token], gate_up[expert]).chunk(2, -1)
            rows = torch.nn.functional.linear(torch.nn.functional.silu(gate) * up, down[expert])
            y.index_add_(0, token, rows * weights[token, choice, None].to(y.dtype))
        return y


def problems(quick: bool) -> Iterator[LayerProblem]:
    """Decoding and prefill."""
    for m in (8,) if quick else (8, 512):
        yield LayerProblem(m, 2048, 768, 64, 8)


def variants(problem: LayerProblem) -> Iterator[Variant]:
    """The layer with int8 and int4 weights, and the operators that it calls, with the arguments that it gives them."""
    for name, config in _CONFIGS.items():
        yield from _layer_variants(problem, name, config)


def _layer_variants(problem: LayerProblem, name: str, config: Any) -> Iterator[Variant]:
    codes = [config.quantize_experts(weight.float()) for weight in problem.weights]
    weight_bytes = sum(each[0].nbytes for each in codes) * config.bits // 8

    def layer() -> QuantMoE:
        routed = QuantExperts.from_codes(*codes, config.bits, 0)
        return QuantMoE.from_experts(routed, problem.router, problem.top_k, scoring="renormalised")

    layers = [layer() for _ in range(copies_for(weight_bytes))]
    moved = int(weight_bytes * problem.active()) + problem.router.nbytes + 2 * problem.x.nbytes
    expected = [integers.float() * scale for integers, scale in codes]
    yield Variant(
        f"anynpu {name}",
        name,
        [lambda layer=layer: layer(problem.x) for layer in layers],
        lambda: problem.with_a_loop(*expected),
        _INT8_ROUNDING,
        moved,
    )
    made = [_calls_of(layer, problem.x) for layer in layers]
    for index, calls in enumerate(zip(*made, strict=True)):
        bytes_of_call = calls[0].moved(problem)
        yield Variant(f"{name} layer, {index + 1}. {calls[0].name}", name, calls, calls[0], 0, bytes_of_call)


@dataclass(frozen=True)
class OperatorCall:
    """One call that a layer makes."""

    name: str
    arguments: dict[str, Any]

    def __call__(self) -> torch.Tensor:
        """Its first result."""
        result = getattr(anynpu, self.name)(**self.arguments)
        return result if isinstance(result, torch.Tensor) else result[0]

    def moved(self, problem: LayerProblem) -> int:
        """Bytes of the tensors that it takes, of experts with tokens, and of its first result."""
        tensors = [value for value in self.arguments.values() if isinstance(value, torch.Tensor)]
        shares = [problem.active() if t.dim() > 1 and t.shape[0] == problem.experts else 1.0 for t in tensors]
        return int(sum(t.nbytes * share for t, share in zip(tensors, shares, strict=True))) + self().nbytes


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[OperatorCall] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.namespace == "anynpu":
            names = [argument.name for argument in func._schema.arguments]
            arguments = {**dict(zip(names, args, strict=False)), **kwargs}
            self.calls.append(OperatorCall(func._schema.name.removeprefix("anynpu::"), arguments))
        return func(*args, **kwargs)


def _calls_of(layer: QuantMoE, x: torch.Tensor) -> list[OperatorCall]:
    with _Recorder() as recorder:
        layer(x)
    return recorder.calls


def peers(problem: LayerProblem) -> Iterator[Variant]:
    """A loop over the experts in bfloat16."""
    gate_up, down = problem.weights
    weight_bytes = gate_up.nbytes + down.nbytes

    def call_with(gate_up: torch.Tensor, down: torch.Tensor) -> Callable[[], torch.Tensor]:
        return lambda: problem.with_a_loop(gate_up, down)

    yield Variant(
        "torch bf16, a loop",
        "W16A16",
        [call_with(gate_up.clone(), down.clone()) for _ in range(copies_for(weight_bytes))],
        lambda: problem.with_a_loop(gate_up.float(), down.float()),
        2.0**-6,
        int(weight_bytes * problem.active()) + problem.router.nbytes + 2 * problem.x.nbytes,
    )


def _normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
