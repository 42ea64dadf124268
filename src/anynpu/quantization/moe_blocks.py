# SPDX-License-Identifier: Apache-2.0
"""Mixture-of-experts blocks of transformers as :class:`anynpu.nn.QuantMoE`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch

from anynpu._check import require
from anynpu.nn import QuantExperts, QuantMoE, RoutedExperts

Codes = tuple[torch.Tensor, torch.Tensor]


class ExpertsConfig(Protocol):
    """How the weights of experts are quantised."""

    bits: int
    group_size: int

    def quantize_experts(self, weight: torch.Tensor) -> Codes:
        """Codes int8 ``[E, N, K]`` and scales float32 ``[E, N, G]`` of float weights ``[E, N, K]``."""


def _renormalised(router: torch.nn.Module) -> dict[str, Any]:
    return {"scoring": "renormalised"}


def _renormalised_on_request(router: torch.nn.Module) -> dict[str, Any]:
    return {"scoring": "renormalised" if router.norm_topk_prob else "softmax"}


def _deepseek_v2(router: torch.nn.Module) -> dict[str, Any]:
    method = router.topk_method
    require("QuantMoE", method in ("greedy", "group_limited_greedy"), f"topk_method {method!r} is not known")
    groups = {"group_count": router.num_group, "k_group": router.topk_group} if method != "greedy" else {}
    return {"scoring": "softmax", "scaling": float(router.routed_scaling_factor), **groups}


def _deepseek_v3(router: torch.nn.Module) -> dict[str, Any]:
    require("QuantMoE", router.norm_topk_prob, "sigmoid scores want norm_topk_prob")
    return {
        "scoring": "sigmoid",
        "scaling": float(router.routed_scaling_factor),
        "group_count": router.num_group,
        "k_group": router.topk_group,
        "two_largest": True,
    }


# How the routers that are known choose, by the name of their class.
ROUTERS: dict[str, Callable[[torch.nn.Module], dict[str, Any]]] = {
    "GraniteMoeTopKRouter": _renormalised,
    "MixtralTopKRouter": _renormalised,
    "Qwen2MoeTopKRouter": _renormalised_on_request,
    "Qwen3MoeTopKRouter": _renormalised_on_request,
    "DeepseekV2TopkRouter": _deepseek_v2,
    "DeepseekV3TopkRouter": _deepseek_v3,
}

# Experts as 3-D parameters ``[E, 2 I, H]``, the gate first, and ``[E, H, I]``, that compute ``down(act(gate) * up)``.
EXPERTS = frozenset(
    f"{kind}Experts"
    for kind in (
        "DeepseekV2", "DeepseekV3", "Dots1", "Ernie4_5_Moe", "Glm4Moe", "HunYuanMoEV1", "Jamba", "MiniMax", "MiniMaxM2",
        "Mixtral", "Olmoe", "Phimoe", "Qwen2Moe", "Qwen3Moe", "Qwen3Next", "Qwen3_5Moe",
    )
)  # fmt: skip


def is_experts(module: torch.nn.Module) -> bool:
    """Whether a module is routed experts of transformers whose place other ones may take."""
    return type(module).__name__ in EXPERTS and hasattr(module, "gate_up_proj")


def sizes_of_experts(module: torch.nn.Module) -> tuple[int, int, int]:
    """Number of experts, and the sizes of a token and of an expert."""
    if isinstance(module, RoutedExperts):
        return module.own.experts, module.own.hidden, module.own.intermediate
    experts, hidden, intermediate = module.down_proj.shape
    return experts, hidden, intermediate


def require_silu(activation: torch.nn.Module) -> None:
    """Experts activate with SiLU: all that the layers here compute."""
    probe = torch.linspace(-8, 8, 33)  # transformers has classes of its own
    silu = torch.allclose(activation(probe), torch.nn.functional.silu(probe))
    require("QuantMoE", silu, f"experts must activate with SiLU, got {type(activation).__name__}")


def router_of(block: torch.nn.Module) -> torch.nn.Module | None:
    """What chooses experts in a block, if it is known how."""
    candidates = (getattr(block, name, None) for name in ("gate", "router"))
    return next((each for each in candidates if type(each).__name__ in ROUTERS), None)


def is_moe_block(module: torch.nn.Module) -> bool:
    """Whether :func:`moe_layer` knows how this module routes and holds its experts' weights."""
    experts = getattr(module, "experts", None)
    whole = all(hasattr(experts, name) for name in ("gate_up_proj", "down_proj", "act_fn"))
    return whole and router_of(module) is not None


def moe_layer(block: torch.nn.Module, config: ExpertsConfig) -> QuantMoE:
    """The quantised layer of a block of Mixtral, Granite-MoE, Qwen2-MoE, Qwen3-MoE, DeepSeek-V2 or V3, left as it is.

    Raises:
        TypeError, ValueError: weights that cannot be quantised, or a block that computes something else.
    """
    require("QuantMoE", is_moe_block(block), f"{type(block).__name__} is no block of experts that anynpu knows")
    router, shared = router_of(block), getattr(block, "shared_experts", None) or getattr(block, "shared_expert", None)
    return QuantMoE.from_experts(
        quant_experts(block.experts.gate_up_proj, block.experts.down_proj, block.experts.act_fn, config),
        router.weight.detach(),
        router.top_k,
        shared=None if shared is None else _shared(shared, config),
        router_bias=getattr(router, "e_score_correction_bias", None),
        shared_gate=block.shared_expert_gate.weight.detach() if hasattr(block, "shared_expert_gate") else None,
        **ROUTERS[type(router).__name__](router),
    ).train(block.training)


def quant_experts(
    gate_up: torch.Tensor, down: torch.Tensor, activation: torch.nn.Module, config: ExpertsConfig
) -> QuantExperts:
    """Experts out of float weights ``[E, 2 I, H]``, the gate first, and ``[E, H, I]``."""
    require_silu(activation)
    parts = [config.quantize_experts(weight.detach()) for weight in (gate_up, down)]
    return QuantExperts.from_codes(*parts, config.bits, config.group_size)


def _shared(mlp: torch.nn.Module, config: ExpertsConfig) -> QuantExperts:
    linears = (mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    require("QuantMoE", all(linear.bias is None for linear in linears), "the shared expert must have no bias")
    gate_up = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]).unsqueeze(0)
    return quant_experts(gate_up, mlp.down_proj.weight.unsqueeze(0), mlp.act_fn, config)
