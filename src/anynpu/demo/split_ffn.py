# SPDX-License-Identifier: Apache-2.0
"""A dense feed-forward layer as a mixture of experts with a known answer: the dense layer's."""

from __future__ import annotations

import copy

import torch

from anynpu.nn import QuantMoE
from anynpu.quantization.moe_blocks import ExpertsConfig, quant_experts

EXPERTS = 8


def split(mlp: torch.nn.Module, experts: int = EXPERTS) -> tuple[torch.Tensor, torch.Tensor]:
    """The hidden units of ``mlp`` in equal shares: gate and up ``[E, 2 I, H]``, down ``[E, H, I]``."""
    gate, up = (linear.weight.detach().unflatten(0, (experts, -1)) for linear in (mlp.gate_proj, mlp.up_proj))
    down = mlp.down_proj.weight.detach().unflatten(1, (experts, -1)).transpose(0, 1)
    return torch.cat([gate, up], dim=1), down


def moe(mlp: torch.nn.Module, config: ExpertsConfig, experts: int = EXPERTS) -> QuantMoE:
    """The shares of ``mlp`` as experts that are all chosen, with weight 1: equal sigmoids, normalised, times E."""
    gate_up, down = split(mlp, experts)
    router = torch.zeros(experts, gate_up.shape[-1])
    return QuantMoE.from_experts(
        quant_experts(gate_up, down, mlp.act_fn, config),
        router,
        experts,
        scoring="sigmoid",
        router_bias=torch.zeros(experts),
        scaling=float(experts),
    )


def with_experts(model: torch.nn.Module, config: ExpertsConfig) -> torch.nn.Module:
    """A copy of a causal language model whose feed-forward layers are experts."""
    model = copy.deepcopy(model)
    for layer in model.model.layers:
        layer.mlp = moe(layer.mlp, config)
    return model
