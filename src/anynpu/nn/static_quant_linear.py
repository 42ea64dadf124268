# SPDX-License-Identifier: Apache-2.0
"""A linear layer with int8 weights and statically quantised activations around a zero point, as Ascend stores it."""

from __future__ import annotations

from typing import ClassVar

import torch

from anynpu._check import require, require_last_axis
from anynpu.nn.prepacked_linear import PrepackedLinear
from anynpu.ops.quant_matmul.int8_linear import int8_linear
from anynpu.ops.quant_matmul.spec import MOST_K


class StaticQuantLinear(PrepackedLinear):
    """``y = (x8 @ weight.T + quant_bias) * deq_scale`` with ``x8 = saturate(rint(x / input_scale) + input_offset)``.

    The int32 ``quant_bias`` holds both what the zero point adds, ``-input_offset * weight.sum(1)``, and the bias in
    units of ``deq_scale``, so that all but the last product is exact. ``deq_scale`` is ``input_scale`` times the scale
    of the weight. A state dict holds ``weight`` int8 ``[N, K]``, ``quant_bias`` ``[N]``, and in float32 ``deq_scale``
    ``[N]``, ``input_scale`` and ``input_offset`` ``[1]``; these stay float32 when the module is cast.

    Args:
        in_features, out_features: as in ``torch.nn.Linear``.
        device: of the buffers, which are to be loaded.

    >>> import torch, anynpu
    >>> layer = anynpu.nn.StaticQuantLinear(64, 8)
    >>> layer(torch.randn(3, 64)).shape
    torch.Size([3, 8])
    """

    FIELDS: ClassVar = {"in_features": int, "out_features": int}

    quant_bias: torch.Tensor
    deq_scale: torch.Tensor
    input_scale: torch.Tensor
    input_offset: torch.Tensor

    def __init__(self, in_features: int, out_features: int, device: torch.device | str | None = None) -> None:
        super().__init__(in_features, out_features)
        op = type(self).__name__
        require(op, in_features <= MOST_K, f"in_features must be at most {MOST_K}, got {in_features}")
        self._register_weight(torch.zeros((out_features, in_features), dtype=torch.int8, device=device))
        self.register_buffer("quant_bias", torch.zeros(out_features, dtype=torch.int32, device=device))
        self.register_buffer("deq_scale", torch.zeros(out_features, dtype=torch.float32, device=device))
        self.register_buffer("input_scale", torch.ones(1, dtype=torch.float32, device=device))
        self.register_buffer("input_offset", torch.zeros(1, dtype=torch.float32, device=device))

    @classmethod
    def from_codes(
        cls,
        codes: torch.Tensor,
        quant_bias: torch.Tensor,
        deq_scale: torch.Tensor,
        input_scale: torch.Tensor,
        input_offset: torch.Tensor,
    ) -> StaticQuantLinear:
        """A layer of int8 codes ``[N, K]`` and the other buffers."""
        n, k = codes.shape
        layer = cls(k, n, device="meta")
        layer._set("weight", codes)
        layer._set("quant_bias", quant_bias)
        layer._set("deq_scale", deq_scale)
        layer._set("input_scale", input_scale)
        layer._set("input_offset", input_offset)
        layer.require_sound()
        return layer

    def fields(self) -> dict[str, int | bool]:
        return {"in_features": self.in_features, "out_features": self.out_features}

    def require_sound(self) -> None:
        op, scale, offset = type(self).__name__, self.input_scale, self.input_offset
        if scale.is_meta:
            return
        require(
            op, bool(scale.isfinite() & (scale > 0)), f"input_scale must be positive and finite, got {float(scale)}"
        )
        whole = bool((offset == offset.round()) & (offset >= -128) & (offset <= 127))
        require(op, whole, f"input_offset must be a whole number in [-128, 127], got {float(offset)}")

    def dequantized(self) -> torch.Tensor:
        return self.codes() * (self.deq_scale / self.input_scale)[:, None]

    def _multiply(self, x: torch.Tensor) -> torch.Tensor:
        require_last_axis(type(self).__name__, x, self.in_features)
        buffers = self._buffers
        return int8_linear(
            x,
            self._operand(),
            buffers["deq_scale"],
            buffers["quant_bias"],
            self.out_features,
            input_scale=buffers["input_scale"],
            input_offset=buffers["input_offset"],
        )
