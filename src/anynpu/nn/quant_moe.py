# SPDX-License-Identifier: Apache-2.0
"""A mixture of experts with int8 activations and int8 or int4 weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch

from anynpu._check import require, require_ints, require_last_axis
from anynpu.nn.expert_gradients import with_gradient
from anynpu.nn.float32_buffers import Float32Buffers
from anynpu.nn.quant_experts import QuantExperts
from anynpu.nn.quantized_linear import wants_derivative
from anynpu.ops.dynamic_quant import dynamic_quant
from anynpu.ops.moe_gating_topk import moe_gating_topk
from anynpu.ops.moe_gating_topk_softmax import moe_gating_topk_softmax
from anynpu.ops.moe_init_routing import moe_init_routing

SCORINGS = ("softmax", "renormalised", "sigmoid")


class QuantMoE(Float32Buffers):
    """Routes each token to k experts, runs them on int8 tokens, and adds up their weighted results.

    The layer of the published call sequence: router in float32, :func:`anynpu.dynamic_quant`,
    :func:`anynpu.moe_init_routing`, :func:`anynpu.grouped_matmul_combine`, :func:`anynpu.dequant_swiglu_quant`,
    :func:`anynpu.grouped_matmul_combine`. The shared expert's result is rounded to bfloat16, as that operator takes it.

    Args:
        hidden, intermediate, experts, k: sizes of a token and of an expert, number of experts, and choices of a token.
        bits, group_size: of the weights, see :class:`anynpu.nn.QuantExperts`.
        scoring: ``"softmax"``; ``"renormalised"``: the k weights add up to 1 (both
            :func:`anynpu.moe_gating_topk_softmax`); ``"sigmoid"``: with a bias (:func:`anynpu.moe_gating_topk`).
        group_count, k_group, two_largest: groups of experts to choose from first, and how they compare.
        scaling: factor of all weights.
        shared: intermediate size of the shared expert, 0: none.
        shared_gated: whether a sigmoid of its own weighs the shared expert.
        device: of the buffers, which are zero until they are loaded.

    >>> import torch, anynpu
    >>> layer = anynpu.nn.QuantMoE(hidden=32, intermediate=16, experts=4, k=2)
    >>> layer(torch.randn(3, 32)).shape
    torch.Size([3, 32])
    """

    FIELDS: ClassVar[Mapping[str, type]] = {
        "hidden": int, "intermediate": int, "experts": int, "k": int, "bits": int, "group_size": int, "scoring": str,
        "group_count": int, "k_group": int, "two_largest": bool, "scaling": float, "shared": int, "shared_gated": bool,
    }  # fmt: skip

    router: torch.Tensor
    router_bias: torch.Tensor | None
    shared_gate: torch.Tensor | None

    def __init__(
        self,
        hidden: int,
        intermediate: int,
        experts: int,
        k: int,
        bits: int = 8,
        group_size: int = 0,
        scoring: str = "softmax",
        group_count: int = 1,
        k_group: int = 1,
        two_largest: bool = False,
        scaling: float = 1.0,
        shared: int = 0,
        shared_gated: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        op = "QuantMoE"
        require_ints(op, experts=experts, k=k, group_count=group_count, k_group=k_group, shared=shared)
        require(op, scoring in SCORINGS, f"scoring must be one of {', '.join(SCORINGS)}, got {scoring!r}")
        require(op, 1 <= k <= experts, f"k must be in [1, experts] = [1, {experts}], got {k}")
        require(op, shared >= 0 and (shared > 0 or not shared_gated), f"shared_gated needs shared > 0, got {shared}")
        grouped = group_count == 1 or scoring != "renormalised"
        require(op, grouped, "groups of experts are for softmax and sigmoid scoring")
        self.hidden, self.k, self.scoring, self.scaling = hidden, k, scoring, scaling
        self.group_count, self.k_group, self.two_largest = group_count, k_group, two_largest
        self.routed = QuantExperts(experts, hidden, intermediate, bits, group_size, device)
        self.shared = QuantExperts(1, hidden, shared, bits, group_size, device) if shared else None
        self.register_buffer("router", torch.zeros(experts, hidden, dtype=torch.float32, device=device))
        self.register_buffer(
            "router_bias", torch.zeros(experts, dtype=torch.float32, device=device) if scoring == "sigmoid" else None
        )
        self.register_buffer(
            "shared_gate", torch.zeros(1, hidden, dtype=torch.float32, device=device) if shared_gated else None
        )

    @classmethod
    def from_experts(
        cls,
        routed: QuantExperts,
        router: torch.Tensor,
        k: int,
        shared: QuantExperts | None = None,
        router_bias: torch.Tensor | None = None,
        shared_gate: torch.Tensor | None = None,
        **options: bool | float | int | str,
    ) -> QuantMoE:
        """A layer of these experts; ``router`` is ``[experts, hidden]``, ``options`` are those of the constructor."""
        layer = cls(
            routed.hidden,
            routed.intermediate,
            router.shape[0],
            k,
            routed.bits,
            routed.group_size,
            shared=0 if shared is None else shared.intermediate,
            shared_gated=shared_gate is not None,
            device="meta",
            **options,
        )
        layer.routed, layer.shared = routed, shared
        for name, value in (("router", router), ("router_bias", router_bias), ("shared_gate", shared_gate)):
            expected = getattr(layer, name)
            if expected is None and value is None:
                continue
            got = None if value is None else tuple(value.shape)
            fits = expected is not None and got == tuple(expected.shape)
            require("QuantMoE", fits, f"{name} must have shape {getattr(expected, 'shape', None)}, got {got}")
            setattr(layer, name, value.to(torch.float32, copy=True))
        return layer

    def part(self, first: int, last: int) -> QuantMoE:
        """This layer with the routed experts [first, last) only, for one of several ranks."""
        made = QuantMoE(**self.fields(), device="meta")
        made.routed, made.shared = self.routed.part(first, last), self.shared
        made.router, made.router_bias, made.shared_gate = self.router, self.router_bias, self.shared_gate
        return made.train(self.training)

    def fields(self) -> dict[str, int | float | bool | str]:
        """The values of ``FIELDS``."""
        routed, shared = self.routed, self.shared
        return {
            "hidden": self.hidden,
            "intermediate": routed.intermediate,
            "experts": self.router.shape[0],
            "k": self.k,
            "bits": routed.bits,
            "group_size": routed.group_size,
            "scoring": self.scoring,
            "group_count": self.group_count,
            "k_group": self.k_group,
            "two_largest": self.two_largest,
            "scaling": self.scaling,
            "shared": 0 if shared is None else shared.intermediate,
            "shared_gated": self.shared_gate is not None,
        }

    def route(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights float32 and experts int32, ``[T, k]``, of tokens ``[T, hidden]``."""
        logits = _float32_linear(x, self.router)
        if self.scoring == "renormalised" or (self.scoring == "softmax" and self.group_count == 1):
            weights, experts, _, _ = moe_gating_topk_softmax(logits, k=self.k, renorm=int(self.scoring != "softmax"))
            return weights * self.scaling, experts
        weights, experts, _ = moe_gating_topk(
            logits,
            self.k,
            bias=self.router_bias,
            k_group=self.k_group,
            group_count=self.group_count,
            group_select_mode=int(self.two_largest),
            norm_type=int(self.scoring == "sigmoid"),
            routed_scaling_factor=self.scaling,
        )
        return weights, experts

    def shared_rows(self, x: torch.Tensor, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor | None:
        """The shared expert's results, bfloat16 ``[T, hidden]``, or None; ``codes`` and ``scale`` are x quantised."""
        if self.shared is None:
            return None
        tokens = codes.shape[0]
        counts, row_index = torch.full((1,), tokens, device=x.device), torch.arange(tokens, device=x.device)
        rows = self.shared(codes, scale, counts, row_index, None, tokens)
        if self.shared_gate is not None:
            rows *= _float32_linear(x, self.shared_gate).sigmoid()
        return rows.bfloat16()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[..., hidden]`` float16, bfloat16 or float32 -> the same shape and dtype."""
        require_last_axis("QuantMoE", x, self.hidden)
        flat = x.reshape(-1, self.hidden)
        weights, experts = self.route(flat)
        codes, scale = dynamic_quant(flat)
        y = routed_sum(
            self.routed, codes, scale, weights, experts, self.routed.experts, 0, self.shared_rows(flat, codes, scale)
        )
        if wants_derivative(flat):
            y = self._with_gradients(y, flat, experts)
        return y.to(x.dtype).reshape(x.shape)

    def _with_gradients(self, y: torch.Tensor, x: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
        """``y`` as a function of the tokens, through router, routed experts and shared expert."""
        y = with_gradient(y, x, self._weights(x, experts), self.routed, experts)
        if self.shared is None:
            return y
        one = torch.ones(len(x), 1, device=x.device)
        weight = one if self.shared_gate is None else _float32_linear(x, self.shared_gate).sigmoid()
        return y + with_gradient(torch.zeros_like(y), x, weight, self.shared, torch.zeros_like(one, dtype=torch.int32))

    def _weights(self, x: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
        """The weights of :meth:`route` for the experts that it chose, of torch's operators, which have gradients."""
        logits = _float32_linear(x, self.router)
        scores = logits.sigmoid() if self.scoring == "sigmoid" else logits.softmax(-1)
        weights = scores.gather(1, experts.long())
        if self.scoring != "softmax":
            weights = weights / weights.sum(-1, keepdim=True)
        return weights * self.scaling

    def prepack(self) -> None:
        """Nothing: the kernels read the buffers as they are."""

    def require_sound(self) -> None:
        """Refuses nothing: every value of the buffers is valid."""

    def extra_repr(self) -> str:
        chosen = {name: value for name, value in self.fields().items() if name in ("k", "scoring", "scaling")}
        return ", ".join(f"{name}={value}" for name, value in chosen.items())


def _float32_linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return torch.nn.functional.linear(x.float(), weight)


def routed_sum(
    own: QuantExperts,
    codes: torch.Tensor,
    scale: torch.Tensor,
    weights: torch.Tensor,
    experts: torch.Tensor,
    expert_num: int,
    first: int,
    shared_input: torch.Tensor | None = None,
    shared_input_offset: int = 0,
) -> torch.Tensor:
    """float32 ``[T, hidden]``: what ``own``, the experts from ``first`` on of ``expert_num``, add to the tokens.

    ``codes`` int8 ``[T, hidden]`` and ``scale`` ``[T]`` are the tokens, ``weights`` and ``experts`` ``[T, k]`` their
    choices among all experts.
    """
    tokens, k = experts.shape
    rows, order, counts, row_scale = moe_init_routing(
        codes,
        experts,
        scale=scale,
        expert_num=expert_num,
        active_expert_range=[first, first + own.experts],
        expert_tokens_num_type=1,
        row_idx_type=1,
    )
    order = order.long()
    return own(rows, row_scale, counts, order // k, weights.flatten()[order], tokens, shared_input, shared_input_offset)
