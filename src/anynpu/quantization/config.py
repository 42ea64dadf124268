# SPDX-License-Identifier: Apache-2.0
"""How layers are quantised: one frozen configuration for each kind."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import ClassVar

import torch

from anynpu._check import require, require_dtype
from anynpu.formats.compressed_files import GRANULARITIES
from anynpu.formats.quantized_weight import QuantizedWeight
from anynpu.nn import CompressedLinear, Int4Linear, QuantizedLinear, QuantLinear, QuantMoE, WeightQuantLinear
from anynpu.quantization.activations import ActivationScales
from anynpu.quantization.moe_blocks import is_moe_block, moe_layer


class QuantConfig(abc.ABC):
    """What :func:`anynpu.quantize_` makes of a layer."""

    def takes(self, module: torch.nn.Module) -> bool:
        """Whether :meth:`layer` replaces such a module; by default linear layers, not what derives from them."""
        return type(module) is torch.nn.Linear

    @abc.abstractmethod
    def layer(self, module: torch.nn.Module, name: str) -> QuantizedLinear | QuantMoE:
        """The layer that takes the place of ``module``, which is left as it is; ``name`` is its name in the model.

        Raises:
            TypeError, ValueError: the weight cannot be quantised.
        """


@dataclass(frozen=True)
class WeightQuantConfig(QuantConfig):
    """Round to nearest between the smallest and largest weight of each group of ``group_size`` inputs.

    Attributes:
        group_size: a multiple of 32, or 0: one scale for each output. A layer with no more than group_size inputs
            gets one scale for each output too.
        symmetric: True: ``real = code * scale``, with the smallest scale at which no weight is cut off. False:
            ``real = (code + offset) * scale`` with a real offset, so that both ends of a group are hit.
    """

    group_size: int
    symmetric: bool = True
    bits: ClassVar[int]

    def __post_init__(self) -> None:
        op = type(self).__name__
        valid = isinstance(self.group_size, int) and self.group_size >= 0 and self.group_size % 32 == 0
        require(op, valid, f"group_size must be 0 or a multiple of 32, got {self.group_size!r}")
        if not isinstance(self.symmetric, bool):
            raise TypeError(f"{op}: symmetric must be a bool, got {type(self.symmetric).__name__}")

    def quantize(self, weight: torch.Tensor) -> QuantizedWeight:
        """Quantises ``[N, K]``, laid out as ``torch.nn.Linear.weight``, in float32.

        Raises:
            TypeError, ValueError: not a non-empty float matrix, or not finite.
        """
        return _quantized(type(self).__name__, weight, self.bits, self.group_size, self.symmetric)

    def layer(self, module: torch.nn.Module, name: str) -> WeightQuantLinear:
        return WeightQuantLinear.from_quantized(self.quantize(module.weight), module.bias)


@dataclass(frozen=True)
class W4A16(WeightQuantConfig):
    """4-bit weights, 16-bit (or wider) activations.

    >>> import torch
    >>> W4A16(group_size=32).quantize(torch.randn(8, 64)).scale.shape
    torch.Size([2, 8])
    """

    group_size: int = 128
    bits: ClassVar[int] = 4


@dataclass(frozen=True)
class W8A16(WeightQuantConfig):
    """8-bit weights, 16-bit (or wider) activations."""

    group_size: int = 0
    bits: ClassVar[int] = 8


@dataclass(frozen=True)
class W8A8(QuantConfig):
    """8-bit weights and activations, both symmetric, of linear layers and mixtures of experts.

    Attributes:
        activations: None: each row (token) gets the scale at which its largest magnitude is 127, found at run time.
            Otherwise the static scales of :func:`anynpu.calibrate_activations`, one for each linear layer.
        granularity: ``"channel"``: a scale for each output; ``"tensor"``: one for the whole weight (of an expert).

    >>> import torch
    >>> codes, scale = W8A8().quantize(torch.tensor([[0.5, -1.0], [2.0, 4.0]]))
    >>> codes.tolist()
    [[64, -128], [64, 127]]
    """

    activations: ActivationScales | None = None
    granularity: str = "channel"
    linear: ClassVar[type[QuantLinear] | type[CompressedLinear]] = QuantLinear
    bits: ClassVar[int] = 8
    group_size: ClassVar[int] = 0

    def __post_init__(self) -> None:
        op = type(self).__name__
        if self.activations is not None and not isinstance(self.activations, ActivationScales):
            got = type(self.activations).__name__
            raise TypeError(f"{op}: activations must be None or the result of calibrate_activations, got {got}")
        known = self.granularity in GRANULARITIES
        require(op, known, f"granularity must be {' or '.join(GRANULARITIES)}, got {self.granularity!r}")

    def quantize(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """int8 codes ``[N, K]`` and float32 scales ``[N]`` of a float weight ``[N, K]``.

        Raises:
            TypeError, ValueError: not a non-empty float matrix, or not finite.
        """
        op = type(self).__name__
        weight = _float_weight(op, weight)
        rows = weight if self.granularity == "channel" else weight.reshape(1, -1)
        codes, scale, _ = _round_to_nearest(rows, 8, rows.shape[1], symmetric=True)
        return codes.reshape(weight.shape), scale.flatten().expand(weight.shape[0]).contiguous()

    def quantize_experts(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """int8 codes ``[E, N, K]`` and float32 scales ``[E, N, 1]`` of float weights ``[E, N, K]``.

        Raises:
            TypeError, ValueError: not non-empty float matrices, or not finite.
        """
        weight = _float_weight(type(self).__name__, weight, 3)
        rows = weight.flatten(0, 1) if self.granularity == "channel" else weight.flatten(1)
        codes, scale, _ = _round_to_nearest(rows, 8, rows.shape[1], symmetric=True)
        return codes.reshape(weight.shape), scale.reshape(len(weight), -1, 1).expand(*weight.shape[:2], 1)

    def takes(self, module: torch.nn.Module) -> bool:
        return super().takes(module) or is_moe_block(module)

    def layer(self, module: torch.nn.Module, name: str) -> QuantLinear | CompressedLinear | QuantMoE:
        if is_moe_block(module):
            return moe_layer(module, self)
        codes, scale = self.quantize(module.weight)
        return self.linear.from_codes(codes, scale, module.bias, self._input_scale(name, codes.device))

    def _input_scale(self, name: str, device: torch.device) -> torch.Tensor | None:
        if self.activations is None:
            return None
        known = name in self.activations.scales
        require(type(self).__name__, known, "no batch of the calibration reached this layer, so it has no scale")
        return torch.tensor([self.activations.scales[name]], dtype=torch.float32, device=device)


@dataclass(frozen=True)
class W8A8Compressed(W8A8):
    """W8A8 with losslessly compressed weights: the same results from fewer bytes.

    Codes with one scale for the whole weight compress best (``granularity="tensor"``), and are the less exact ones.
    """

    linear: ClassVar[type[QuantLinear] | type[CompressedLinear]] = CompressedLinear

    def takes(self, module: torch.nn.Module) -> bool:
        return QuantConfig.takes(self, module)


@dataclass(frozen=True)
class W4A8(QuantConfig):
    """4-bit weights and 8-bit activations of linear layers and mixtures of experts, both symmetric.

    Each row (token) of activations gets the scale at which its largest magnitude is 127, found at run time.

    Attributes:
        group_size: how many inputs share a scale; 0: all of them. For linear layers a multiple of 32 (one with no more
            inputs gets one scale for each output), for experts a divisor of both of their sizes.

    >>> import torch
    >>> codes, scale = W4A8(group_size=2).quantize_experts(torch.tensor([[[0.5, -1.0, 3.5, 7.0]]]))
    >>> codes.tolist(), scale.tolist()
    ([[[4, -8, 4, 7]]], [[[0.125, 1.0]]])
    """

    group_size: int = 128
    bits: ClassVar[int] = 4

    def __post_init__(self) -> None:
        valid = isinstance(self.group_size, int) and self.group_size >= 0
        require("W4A8", valid, f"group_size must be 0 or positive, got {self.group_size!r}")

    def quantize(self, weight: torch.Tensor) -> QuantizedWeight:
        """Quantises ``[N, K]`` as :class:`W4A16` does.

        Raises:
            TypeError, ValueError: not a non-empty float matrix, or not finite; a group_size that is no multiple of 32.
        """
        require("W4A8", self.group_size % 32 == 0, f"group_size must be a multiple of 32, got {self.group_size}")
        return _quantized("W4A8", weight, self.bits, self.group_size, symmetric=True)

    def quantize_experts(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """int8 codes ``[E, N, K]`` and float32 scales ``[E, N, G]`` of float weights ``[E, N, K]``.

        Raises:
            TypeError, ValueError: not non-empty float matrices, or not finite.
        """
        weight = _float_weight("W4A8", weight, 3)
        rows = weight.flatten(0, 1)
        codes, scale, _ = _round_to_nearest(rows, 4, self.group_size or rows.shape[1], symmetric=True)
        return codes.reshape(weight.shape), scale.unflatten(0, weight.shape[:2])

    def takes(self, module: torch.nn.Module) -> bool:
        return super().takes(module) or is_moe_block(module)

    def layer(self, module: torch.nn.Module, name: str) -> Int4Linear | QuantMoE:
        if is_moe_block(module):
            return moe_layer(module, self)
        return Int4Linear.from_quantized(self.quantize(module.weight), module.bias)


def _quantized(op: str, weight: torch.Tensor, bits: int, group_size: int, symmetric: bool) -> QuantizedWeight:
    """``[N, K]`` with a scale for each ``group_size`` inputs, or for each output if there are no more inputs, or 0."""
    weight = _float_weight(op, weight)
    group_size = group_size if 0 < group_size < weight.shape[1] else weight.shape[1]
    codes, scale, offset = _round_to_nearest(weight, bits, group_size, symmetric)
    require(op, bool(torch.isfinite(scale).all()), "the range of weight must be finite in float32")
    return QuantizedWeight.from_codes(codes, scale, offset, group_size, bits=bits)


def _float_weight(op: str, weight: torch.Tensor, axes: int = 2) -> torch.Tensor:
    require_dtype(op, "weight", weight, (torch.float16, torch.bfloat16, torch.float32, torch.float64))
    shape, kind = tuple(weight.shape), "a non-empty matrix" if axes == 2 else "non-empty matrices"
    require(op, weight.dim() == axes and weight.numel() > 0, f"weight must be {kind}, got shape {shape}")
    weight = weight.detach().to(torch.float32)
    require(op, bool(torch.isfinite(weight).all()), "weight must be finite in float32")
    return weight


def _round_to_nearest(
    weight: torch.Tensor, bits: int, group_size: int, symmetric: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Codes [N, K] in int8, scale [N, G], offset [N, G] or None."""
    n, k = weight.shape
    lowest, highest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    # The last group is filled up with its own last column, which changes neither its minimum nor its maximum.
    grouped = torch.cat([weight, weight[:, -1:].expand(n, -k % group_size)], dim=1).unflatten(1, (-1, group_size))
    low, high = grouped.aminmax(dim=-1)
    # Tensors: GPUs multiply by the reciprocal of a number, which gives another last bit.
    least, most = weight.new_tensor((lowest, highest)).unbind()
    if symmetric:
        scale = _usable(torch.maximum(high / most, low / least), torch.ones_like(low))
        offset = torch.zeros_like(scale)
    else:
        scale = _usable((high - low) / (most - least), low.abs())
        scale = _usable(scale, torch.ones_like(low))
        offset = low / scale - lowest
    codes = (grouped / scale.unsqueeze(-1) - offset.unsqueeze(-1)).round().clamp(lowest, highest).to(torch.int8)
    return codes.flatten(1)[:, :k], scale, None if symmetric else offset


def _usable(scale: torch.Tensor, otherwise: torch.Tensor) -> torch.Tensor:
    """``otherwise`` where a scale is too small to divide by: a group of equal weights."""
    return torch.where(scale < torch.finfo(torch.float32).tiny, otherwise, scale)
