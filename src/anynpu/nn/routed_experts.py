# SPDX-License-Identifier: Apache-2.0
"""Routed experts in the place of those of a transformers block, whose router and shared expert stay what they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch

from anynpu._check import require_last_axis
from anynpu.nn.expert_gradients import with_gradient
from anynpu.nn.quant_experts import QuantExperts
from anynpu.nn.quant_moe import routed_sum
from anynpu.nn.quantized_linear import wants_derivative
from anynpu.ops.dynamic_quant import dynamic_quant
from anynpu.ops.moe_init_routing import moe_init_routing


class RoutedExperts(torch.nn.Module):
    """Experts with int8 activations and int8 or int4 weights: what lies between router and sum in :class:`QuantMoE`.

    Args:
        experts, hidden, intermediate, bits, group_size, device: as in :class:`QuantExperts`.
    """

    FIELDS: ClassVar[Mapping[str, type]] = {
        "experts": int, "hidden": int, "intermediate": int, "bits": int, "group_size": int,
    }  # fmt: skip

    def __init__(
        self,
        experts: int,
        hidden: int,
        intermediate: int,
        bits: int = 8,
        group_size: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.own = QuantExperts(experts, hidden, intermediate, bits, group_size, device)

    @classmethod
    def from_experts(cls, own: QuantExperts) -> RoutedExperts:
        """A layer of these experts."""
        layer = cls(own.experts, own.hidden, own.intermediate, own.bits, own.group_size, device="meta")
        layer.own = own
        return layer

    def fields(self) -> dict[str, int]:
        """The values of ``FIELDS``."""
        return {name: getattr(self.own, name) for name in self.FIELDS}

    def forward(self, x: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Float ``[T, hidden]`` -> the same shape and dtype; ``experts`` and ``weights`` are a router's ``[T, k]``."""
        require_last_axis("RoutedExperts", x, self.own.hidden)
        codes, scale = dynamic_quant(x)
        y = routed_sum(self.own, codes, scale, weights.float(), experts.int(), self.own.experts, 0)
        return with_gradient(y, x, weights, self.own, experts).to(x.dtype)

    def prepack(self) -> None:
        """Nothing: the kernels read the buffers as they are."""

    def require_sound(self) -> None:
        """Refuses nothing: every value of the buffers is valid."""


class LinearExperts(torch.nn.ModuleList):
    """Experts of three linear layers each, ``down_proj(silu(gate_proj(x)) * up_proj(x))``, of whatever kind they are.

    They compute one after the other. Only experts that were chosen do.
    """

    def __init__(
        self, experts: int, hidden: int, intermediate: int, dtype: torch.dtype, device: torch.device | str | None = None
    ) -> None:
        super().__init__(_Expert(hidden, intermediate, dtype, device) for _ in range(experts))

    def forward(self, x: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Float ``[T, hidden]`` -> the same shape and dtype; ``experts`` and ``weights`` are a router's ``[T, k]``."""
        rows, order, counts, _ = moe_init_routing(
            x.detach(), experts.int(), expert_num=len(self), expert_tokens_num_type=1, row_idx_type=1
        )
        if wants_derivative(x):
            rows = x[order.long() // experts.shape[1]]
        parts = zip(self, rows.split(counts.tolist()), strict=True)
        results = torch.cat([rows[:0], *(expert(part) for expert, part in parts if len(part) > 0)])
        by_token = results[order.argsort()].view(*weights.shape, x.shape[-1])
        return (by_token * weights.float().unsqueeze(-1)).sum(1).to(x.dtype)


class _Expert(torch.nn.Module):
    def __init__(
        self, hidden: int, intermediate: int, dtype: torch.dtype, device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        options = {"bias": False, "dtype": dtype, "device": device}
        self.gate_proj = torch.nn.Linear(hidden, intermediate, **options)
        self.up_proj = torch.nn.Linear(hidden, intermediate, **options)
        self.down_proj = torch.nn.Linear(intermediate, hidden, **options)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(torch.nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))
