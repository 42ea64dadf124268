# SPDX-License-Identifier: Apache-2.0
"""Writes the layout of compressed-tensors, which vLLM loads: pack-quantized weights and int-quantized W8A8."""

from __future__ import annotations

from typing import Any

import torch

from anynpu._check import require
from anynpu.nn import Int4Linear, QuantizedLinear, QuantLinear, StaticQuantLinear, WeightQuantLinear

_OP = "compressed-tensors"


class CompressedTensorsWriter:
    """Writes layers, and ``quantization_config`` with a group of layers for each kind of them.

    Args:
        int8_activations: the names of int4 layers, all of experts, whose activations are int8.
    """

    def __init__(self, int8_activations: set[str]) -> None:
        self._int8_activations = int8_activations
        self._groups: list[dict[str, Any]] = []

    def tensors(self, name: str, layer: QuantizedLinear) -> dict[str, torch.Tensor]:
        """The tensors of a layer by the last parts of their names.

        Raises:
            ValueError: the layout has no place for the layer.
        """
        if name in self._int8_activations or isinstance(layer, Int4Linear):
            made, form, weights, activations = _int4_with_int8_activations(layer)
        elif isinstance(layer, WeightQuantLinear):
            made, form, weights, activations = _weight_only(layer)
        else:
            made, form, weights, activations = _int8(layer)
        described = {"weights": weights, "input_activations": activations, "output_activations": None, "format": form}
        for group in self._groups:
            if all(group[key] == value for key, value in described.items()):
                group["targets"].append(name)
                return made
        self._groups.append({"targets": [name], **described})
        return made

    def quantization_config(self, floats: list[str]) -> dict[str, Any]:
        """The object for ``config.json``; ``floats`` are the linear layers that are not quantised."""
        formats = sorted({group["format"] for group in self._groups})
        if len(self._groups) == 1:
            self._groups[0]["targets"] = ["Linear"]
        return {
            "quant_method": "compressed-tensors",
            "format": formats[0] if len(formats) == 1 else "mixed-precision",
            "quantization_status": "compressed",
            "config_groups": {f"group_{i}": group for i, group in enumerate(self._groups)},
            "ignore": floats,
            "kv_cache_scheme": None,
        }


def _args(bits: int, symmetric: bool, strategy: str, **options: Any) -> dict[str, Any]:
    return {
        "num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": strategy, "dynamic": False,
        "group_size": None, **options,
    }  # fmt: skip


def _weight_only(layer: WeightQuantLinear) -> tuple[dict[str, torch.Tensor], str, dict[str, Any], None]:
    n, k, bits = layer.out_features, layer.in_features, layer.bits
    middle = 2 ** (bits - 1)
    codes = layer.codes().int() + middle
    scale = layer.scale.reshape(-1, n).t().contiguous()
    made: dict[str, torch.Tensor] = {"weight_scale": scale, "weight_shape": torch.tensor([n, k])}
    if layer.offset is not None:
        zero = middle - layer.offset.reshape(-1, n).t()
        whole = bool(((zero == zero.round()) & (zero >= 0) & (zero < 2**bits)).all())
        require(_OP, whole, f"zero points must be whole numbers of {bits} bits, got others")
        made["weight_zero_point"] = _packed_words(zero.int().t(), bits).t().contiguous()
    if layer.input_order is not None:
        group_of = torch.arange(k) // (layer.group_size or k)
        inverse = layer.input_order.argsort()
        codes = codes[:, inverse]
        made["weight_g_idx"] = group_of[inverse].int()
    made["weight_packed"] = _packed_words(codes, bits)
    if layer.bias is not None:
        made["bias"] = layer.bias
    options = {"group_size": layer.group_size} if layer.group_size else {}
    if layer.input_order is not None:
        options["actorder"] = "group"
    strategy = "group" if layer.group_size else "channel"
    return made, "pack-quantized", _args(bits, layer.offset is None, strategy, **options), None


def _int4_with_int8_activations(
    layer: WeightQuantLinear,
) -> tuple[dict[str, torch.Tensor], str, dict[str, Any], dict[str, Any]]:
    scale = layer.scale.reshape(-1, layer.out_features).t().contiguous()
    weights = _args(4, True, "group", group_size=layer.group_size) if layer.group_size else _args(4, True, "channel")
    activations = _args(8, True, "token", dynamic=True)
    made = {"weight": layer.codes(), "weight_scale": scale}
    if layer.bias is not None:
        made["bias"] = layer.bias
    return made, "int-quantized", weights, activations


def _packed_words(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Unsigned int32 values, the last axis packed into int32 words, lowest bits first, filled up with zeros."""
    per_word = 32 // bits
    filled = torch.nn.functional.pad(values.long(), (0, -values.shape[-1] % per_word)).unflatten(-1, (-1, per_word))
    words = (filled << torch.arange(0, 32, bits)).sum(-1)
    return torch.where(words < 2**31, words, words - 2**32).to(torch.int32)


def _int8(layer: QuantizedLinear) -> tuple[dict[str, torch.Tensor], str, dict[str, Any], dict[str, Any]]:
    require(_OP, isinstance(layer, (QuantLinear, StaticQuantLinear)), f"no format for {type(layer).__name__}")
    made = {"weight": layer.codes()}
    symmetric = True
    if isinstance(layer, StaticQuantLinear):
        symmetric = not bool(layer.input_offset)
        rest = layer.quant_bias.long() + layer.input_offset.long() * made["weight"].sum(1, dtype=torch.int64)
        made |= {"weight_scale": (layer.deq_scale / layer.input_scale)[:, None], "input_scale": layer.input_scale}
        if not symmetric:
            made["input_zero_point"] = layer.input_offset.to(torch.int8)
        if bool(rest.any()):
            made["bias"] = (rest.double() * layer.deq_scale.double()).float()
    else:
        made["weight_scale"] = layer.scale[:, None]
        if layer.input_scale is not None:
            made["input_scale"] = layer.input_scale
        if layer.bias is not None:
            made["bias"] = layer.bias
    dynamic = "input_scale" not in made
    activations = _args(8, symmetric, "token" if dynamic else "tensor", dynamic=dynamic)
    made = {key: tensor.contiguous() for key, tensor in made.items()}
    return made, "int-quantized", _args(8, True, "channel"), activations
