# SPDX-License-Identifier: Apache-2.0
"""Gradients through quantised experts: those of float experts with the same weights, as if no token had been rounded.

The weights themselves are not trained.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from anynpu.nn.quant_experts import QuantExperts
from anynpu.nn.quantized_linear import wants_derivative


def with_gradient(
    y: torch.Tensor, x: torch.Tensor, weights: torch.Tensor, own: QuantExperts, experts: torch.Tensor
) -> torch.Tensor:
    """``y``, to autograd what ``own`` makes of tokens ``x`` ``[T, hidden]``, by the ``weights`` of their ``experts``.

    Weights and experts are ``[T, k]``. Compiled code can compute no such gradient: an error where one is wanted.
    """
    if torch.compiler.is_compiling():
        return without_gradient(y, x, weights)
    if wants_derivative(x) or wants_derivative(weights):
        return _WithGradient.apply(y.detach(), x, weights, own, experts)
    return y


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, y: torch.Tensor, x: torch.Tensor, weights: torch.Tensor, own: QuantExperts, experts: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weights, experts)
        ctx.own = own
        return y.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, torch.Tensor, torch.Tensor, None, None]:
        x, weights, experts = ctx.saved_tensors
        of_x, of_weights = (torch.zeros_like(each, dtype=torch.float32) for each in (x, weights))
        for expert in experts.unique().tolist():  # one after the other: their float weights are large
            token, choice = (experts == expert).nonzero(as_tuple=True)
            leaves = x[token].float().requires_grad_(), weights[token, choice].float().requires_grad_()
            with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
                result = ctx.own.of_floats(leaves[0], expert) * leaves[1].unsqueeze(-1)
            of_rows, of_weights[token, choice] = torch.autograd.grad(result, leaves, gradient[token])
            of_x.index_add_(0, token, of_rows)
        return None, of_x.to(x.dtype), of_weights.to(weights.dtype), None, None


def without_gradient(y: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
    """``y``, to autograd no function of the ``inputs`` it was computed from: an error where a gradient is wanted."""
    differentiable = [each for each in inputs if each.requires_grad]
    if differentiable and torch.is_grad_enabled():
        return _WithoutGradient.apply(y.detach(), differentiable[0].flatten()[:1].sum())
    return y


class _WithoutGradient(torch.autograd.Function):
    """``y`` as a function of ``anchor``, a number that depends on the input."""

    @staticmethod
    def forward(ctx: Any, y: torch.Tensor, anchor: torch.Tensor) -> torch.Tensor:
        return y.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, torch.Tensor]:
        return None, _refused_gradient(gradient)


# An operator, since torch.compile runs a backward pass when it traces one: only the call of this may raise.
@torch.library.custom_op("anynpu::refused_gradient", mutates_args=())
def _refused_gradient(gradient: torch.Tensor) -> torch.Tensor:
    layers = "ExpertParallelMoE, and QuantMoE and RoutedExperts under torch.compile"
    raise NotImplementedError(f"{layers}: quantised experts have no gradient there")


@_refused_gradient.register_fake
def _(gradient: torch.Tensor) -> torch.Tensor:
    return gradient.new_empty(())
