# SPDX-License-Identifier: Apache-2.0
"""What the quantised linear layers have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch.autograd import forward_ad

from anynpu._check import require, require_ints
from anynpu.nn.float32_buffers import Float32Buffers


class QuantizedLinear(Float32Buffers):
    """A linear layer that computes from quantised weights and takes the place of a ``torch.nn.Linear``.

    Attributes:
        FIELDS: the constructor's arguments besides ``device``, and their types: what a checkpoint says of a layer.
    """

    FIELDS: ClassVar[Mapping[str, type]]

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        require_ints(type(self).__name__, in_features=in_features, out_features=out_features)
        sizes = f"sizes must be positive, got {in_features}, {out_features}"
        require(type(self).__name__, in_features > 0 and out_features > 0, sizes)
        self.in_features = in_features
        self.out_features = out_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[..., in_features]`` float16, bfloat16 or float32 -> ``[..., out_features]`` of the same dtype."""
        if wants_derivative(x):
            return _WithGradient.apply(x, self)
        return self._multiply(x)

    def _multiply(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def dequantized(self) -> torch.Tensor:
        """The weight as numbers, float32 ``[out_features, in_features]``."""
        raise NotImplementedError

    @property
    def qweight(self) -> torch.Tensor:
        """A buffer on the layer's device: PEFT asks a quantised layer for it under this name."""
        return next(self.buffers())

    def fields(self) -> dict[str, int | bool]:
        """The values of ``FIELDS``."""
        raise NotImplementedError

    def prepack(self) -> None:
        """Makes what the kernels read fastest. By default the buffers are that already."""

    def require_sound(self) -> None:
        """Refuses loaded values that shapes and dtypes do not rule out.

        Raises:
            ValueError: the values cannot be those of a layer.
        """

    def _set(self, name: str, value: torch.Tensor) -> None:
        expected = getattr(self, name)
        fits = (value.shape, value.dtype) == (expected.shape, expected.dtype)
        require(
            type(self).__name__,
            fits,
            f"{name} must be {expected.dtype} {tuple(expected.shape)}, got {value.dtype} {tuple(value.shape)}",
        )
        setattr(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, torch.nn.Parameter):  # tie_weights() of transformers
            raise TypeError(f"{type(self).__name__}: {name} is quantised and cannot be a parameter, or tied to one")
        super().__setattr__(name, value)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.fields().items())


def wants_derivative(x: torch.Tensor) -> bool:
    """Whether autograd, in backward or forward mode, may ask for the derivative of what is computed from ``x``."""
    return (x.requires_grad and torch.is_grad_enabled()) or forward_ad._current_level >= 0


class _WithGradient(torch.autograd.Function):
    """The layer, and the gradient of its input: that of the float layer, as if nothing had been rounded."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor, layer: QuantizedLinear) -> torch.Tensor:
        return layer._multiply(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, QuantizedLinear], output: torch.Tensor) -> None:
        ctx.layer = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient @ ctx.layer.dequantized().to(gradient.dtype), None

    @staticmethod
    def jvp(ctx: Any, tangent: torch.Tensor, _: None) -> torch.Tensor:
        return tangent @ ctx.layer.dequantized().to(tangent.dtype).t()
