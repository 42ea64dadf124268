# SPDX-License-Identifier: Apache-2.0
"""``torch_npu.optim``: the fused optimisers that torch has too, which are torch's, and Lamb."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from anynpu.compat.errors import module_getattr


class _Clipping:
    """What the vendor's optimisers have besides."""

    def clip_grad_norm_fused_(self, max_norm: float, norm_type: float = 2) -> torch.Tensor:
        """:func:`torch.nn.utils.clip_grad_norm_` over all parameters."""
        return torch.nn.utils.clip_grad_norm_(self._parameters(), max_norm, norm_type)

    def _parameters(self) -> list[torch.Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]


class NpuFusedAdadelta(_Clipping, torch.optim.Adadelta):
    """:class:`torch.optim.Adadelta`."""


class NpuFusedAdam(_Clipping, torch.optim.Adam):
    """:class:`torch.optim.Adam`."""


class NpuFusedAdamW(_Clipping, torch.optim.AdamW):
    """:class:`torch.optim.AdamW`."""


class NpuFusedLamb(_Clipping, torch.optim.Optimizer):
    """Lamb (https://arxiv.org/abs/1904.00962) as published: moments without bias correction, weight norms up to 10.

    Args:
        params: parameters, or dicts of groups.
        lr, betas, eps, weight_decay: as of Adam.
        adam: take every step as it is, whatever the norm of the weights.
        use_global_grad_norm: divide the gradients by the norm of all of them, where it is above 1.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0,
        adam: bool = False,
        use_global_grad_norm: bool = False,
    ) -> None:
        if lr < 0 or eps < 0 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(
                "NpuFusedLamb: lr and eps must be at least 0 and betas in [0, 1), "
                f"got lr {lr}, eps {eps}, betas {tuple(betas)}"
            )
        self.adam, self.use_global_grad_norm = adam, use_global_grad_norm
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; the result of ``closure``, if any."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        divisor = self._divisor()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad / divisor, group)
        return loss

    def _divisor(self) -> torch.Tensor | float:
        if not self.use_global_grad_norm:
            return 1.0
        gradients = [parameter.grad for parameter in self._parameters() if parameter.grad is not None]
        return torch.nn.utils.get_total_norm(gradients).clamp(min=1)

    def _move(self, parameter: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        mean = state["exp_avg"].lerp_(gradient, 1 - group["betas"][0])
        square = state["exp_avg_sq"].lerp_(gradient.square(), 1 - group["betas"][1])
        step = mean / (square.sqrt() + group["eps"]) + group["weight_decay"] * parameter
        parameter.sub_(group["lr"] * self._trust(parameter, step) * step)

    def _trust(self, parameter: torch.Tensor, step: torch.Tensor) -> torch.Tensor | float:
        """The norm of the weights over that of the step; 1 if either is 0."""
        weights, length = parameter.norm().clamp(max=10), step.norm()
        return 1.0 if self.adam or weights == 0 or length == 0 else weights / length


class NpuFusedRMSprop(_Clipping, torch.optim.RMSprop):
    """:class:`torch.optim.RMSprop`."""


class NpuFusedSGD(_Clipping, torch.optim.SGD):
    """:class:`torch.optim.SGD`."""


__getattr__ = module_getattr(__name__, globals())
