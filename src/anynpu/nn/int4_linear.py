# SPDX-License-Identifier: Apache-2.0
"""A linear layer that quantises its activations to int8 and multiplies them by int4 weights (W4A8)."""

from __future__ import annotations

from typing import ClassVar

import torch

from anynpu._check import require, require_last_axis
from anynpu.formats.quantized_weight import QuantizedWeight, packing_axis
from anynpu.nn.weight_quant_linear import WeightQuantLinear
from anynpu.ops.quant_matmul.int8_linear import int8_linear
from anynpu.ops.quant_matmul.spec import MOST_K


class Int4Linear(WeightQuantLinear):
    """``y = (x8 @ weight) * scale * input_scale + bias`` in the dtype of x, with ``x8 = rint(x / input_scale)``.

    Every row of x has a scale of its own, its largest magnitude / 127, and the product is that of
    :func:`anynpu.quant_matmul`. Weight, scale and bias are kept, saved and prepacked as those of a symmetric 4-bit
    :class:`WeightQuantLinear`.

    Args:
        in_features, out_features: as in ``torch.nn.Linear``; one of them a multiple of 8.
        group_size: 0, or how many inputs share a row of scale.
        bias: with a bias.
        device: of the buffers, which are zero until they are loaded.

    >>> import torch, anynpu
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 8))
    >>> anynpu.quantize_(model, anynpu.W4A8(group_size=32))[0]
    Int4Linear(in_features=64, out_features=8, group_size=32, bias=True)
    """

    FIELDS: ClassVar = {"in_features": int, "out_features": int, "group_size": int, "bias": bool}

    def __init__(
        self,
        in_features: int,
        out_features: int,
        group_size: int = 0,
        bias: bool = True,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(in_features, out_features, 4, group_size, bias=bias, device=device)
        op, sizes = "Int4Linear", (in_features, out_features)
        packs = packing_axis(*sizes) is not None
        require(op, packs, f"in_features or out_features must be a multiple of 8 (not 8 and 1), got {sizes}")
        require(op, in_features <= MOST_K, f"in_features must be at most {MOST_K}, got {in_features}")

    @classmethod
    def from_quantized(cls, quantized: QuantizedWeight, bias: torch.Tensor | None = None) -> Int4Linear:
        """A layer with a symmetric 4-bit weight of a converter of :mod:`anynpu.formats`, on its device."""
        plain = quantized.offset is None and quantized.input_order is None
        require("Int4Linear", plain, "int4 weights beside int8 activations must have no offset or order of inputs")
        k, n = quantized.shape
        layer = cls(k, n, quantized.group_size, bias is not None, "meta")
        layer._take(quantized, bias)
        return layer

    def fields(self) -> dict[str, int | bool]:
        fields = super().fields()
        return {name: fields[name] for name in self.FIELDS}

    def _multiply(self, x: torch.Tensor) -> torch.Tensor:
        require_last_axis("Int4Linear", x, self.in_features)
        buffers = self._buffers
        operand = self._operand()
        return int8_linear(x, operand, buffers["scale"], buffers["bias"], self.out_features, group_size=self.group_size)
