# SPDX-License-Identifier: Apache-2.0
"""The layout of msModelSlim, which vllm-ascend loads: a description names the type of every tensor."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from anynpu._check import require, require_dtype
from anynpu._read import read_object
from anynpu.checkpoints.producers import (
    Producer,
    Shape,
    int8_layer,
    one_value,
    require_zero,
    take,
    weight_layer,
)
from anynpu.formats._words import FLOAT_DTYPES, require_finite, require_matrix
from anynpu.formats.experts import from_int8
from anynpu.formats.msmodelslim import from_msmodelslim_w4a8
from anynpu.nn import QuantizedLinear, QuantLinear, StaticQuantLinear, WeightQuantLinear

DESCRIPTION = "quant_model_description.json"
_FLOAT = "FLOAT"
_CACHE = "C8"  # the type of an INT8 KV cache
CACHE_SCALE, CACHE_OFFSET = "kv_cache_scale", "kv_cache_offset"  # of the layers that make keys and values
_ROW_PARALLEL = (
    "o_proj",
    "down_proj",
    "w2",
)  # their scale_bias has a column for each sixteenth of K, for tensor parallelism
_ROW_PARALLEL_COLUMNS = 16


def description_of(folder: Path) -> Path | None:
    """The description of a folder, whose name may end in the type of its weights."""
    op = "load_checkpoint"
    found = sorted(folder.glob("quant_model_description*.json"))
    require(op, len(found) <= 1, f"{folder} must have one description, got {[path.name for path in found]}")
    return found[0] if found else None


class MsModelSlim(Producer):
    """msModelSlim: ``config`` is the description."""

    @classmethod
    def of(cls, path: Path) -> MsModelSlim:
        """The producer of a folder with the description ``path``."""
        return cls(read_object("load_checkpoint", path))

    def is_of_model(self, tensor: str) -> bool:
        return tensor.rpartition(".")[2] not in (CACHE_SCALE, CACHE_OFFSET)

    def is_quantized(self, name: str, own: set[str]) -> bool:
        types = {self._type(f"{name}.{key}" if name else key) for key in own}
        kind = self._type(f"{name}.weight") if "weight" in own else _FLOAT
        sentence = f"types of the tensors of {name} must be that of its weight, {kind}, or FLOAT, got {sorted(types)}"
        require("load_checkpoint", types <= {kind, _FLOAT}, sentence)
        return kind != _FLOAT

    def _type(self, tensor: str) -> str:
        kind = self.config.get(tensor)
        require("load_checkpoint", isinstance(kind, str), f"{DESCRIPTION} must name the type of {tensor}, got {kind!r}")
        return kind

    def int8_activations(self, name: str) -> bool:
        return self._type(f"{name}.weight") == "W4A8_DYNAMIC"

    def layer(self, name: str, tensors: dict[str, torch.Tensor], shape: Shape) -> QuantizedLinear:
        kind = self._type(f"{name}.weight")
        known = kind in _READERS
        require("layer", known, f"type must be one of {_FLOAT}, {', '.join(_READERS)}, got {kind!r}")
        return _READERS[kind](tensors, shape)


def _w8a8(tensors: dict[str, torch.Tensor], shape: Shape) -> QuantizedLinear:
    codes, input_scale, input_offset, deq_scale, quant_bias, *_ = take(
        tensors,
        ("weight", "input_scale", "input_offset", "deq_scale", "quant_bias"),
        ("weight_scale", "weight_offset", "bias"),
    )
    require_zero("weight_offset", tensors.get("weight_offset"))
    require_zero("bias (quant_bias holds it)", tensors.get("bias"))
    require_matrix("layer", "weight", codes, (torch.int8,), shape)
    for key, tensor, dtypes in (
        ("deq_scale", deq_scale, (torch.float32, torch.int64)),
        ("quant_bias", quant_bias, (torch.int32,)),
    ):
        require_dtype("layer", key, tensor, dtypes)
        fits = tuple(tensor.shape) == shape[:1]
        require("layer", fits, f"{key} must have shape ({shape[0]},), got {tuple(tensor.shape)}")
    scale = _bits_as_float(deq_scale) if deq_scale.dtype == torch.int64 else deq_scale
    require_finite("layer", "deq_scale", scale)
    return StaticQuantLinear.from_codes(
        codes,
        quant_bias,
        scale,
        one_value("input_scale", input_scale, FLOAT_DTYPES),
        one_value("input_offset", input_offset, (torch.int8, *FLOAT_DTYPES)),
    )


def _bits_as_float(words: torch.Tensor) -> torch.Tensor:
    """float32 whose bits are the low 32 of int64."""
    low = words & 0xFFFFFFFF
    return torch.where(low < 2**31, low, low - 2**32).to(torch.int32).view(torch.float32)


def _w8a8_dynamic(tensors: dict[str, torch.Tensor], shape: Shape) -> QuantizedLinear:
    codes, scale, offset, bias = take(tensors, ("weight", "weight_scale"), ("weight_offset", "bias"))
    require_zero("weight_offset", offset)
    return int8_layer(codes, scale, bias)


def _w8a16(tensors: dict[str, torch.Tensor], shape: Shape) -> QuantizedLinear:
    codes, scale, offset, bias = take(tensors, ("weight", "weight_scale"), ("weight_offset", "bias"))
    symmetric = offset is None or not bool(offset.any())
    sentence = "weight_offset of W8A16 must be 0: msModelSlim subtracts and vllm-ascend adds it, got other values"
    require("layer", symmetric, sentence)
    return weight_layer(from_int8(codes, scale), bias)


def _w4(tensors: dict[str, torch.Tensor], shape: Shape) -> QuantizedLinear:
    """Int4, a byte each, or two in a byte; the float activations of vllm-ascend's linear layers."""
    codes, scale, offset, second, offset_second, _, bias = take(
        tensors,
        ("weight", "weight_scale"),
        ("weight_offset", "weight_scale_second", "weight_offset_second", "scale_bias", "bias"),
    )
    require_zero("weight_offset_second", offset_second)
    n, k = shape
    require_matrix("layer", "weight", codes, (torch.int8,), (None, k))
    if codes.shape[0] == n:
        inside = bool(((codes >= -8) & (codes <= 7)).all())
        require("layer", inside, f"weight must be in [-8, 7], got {int(codes.min())} to {int(codes.max())}")
        require("layer", n % 2 == 0, f"N must be even, got {n}")
        codes = _two_in_a_byte(codes)
    return weight_layer(from_msmodelslim_w4a8(codes, scale, offset, second), bias)


def _two_in_a_byte(codes: torch.Tensor) -> torch.Tensor:
    """int8 ``[N / 2, K]``: row 2i of int4 in the low and row 2i + 1 in the high half of a byte."""
    return (codes[0::2] & 15) | (codes[1::2] << 4)


_READERS = {
    "W8A8": _w8a8,
    "W8A8_DYNAMIC": _w8a8_dynamic,
    "W8A16": _w8a16,
    "W4A16": _w4,
    "W4A8_DYNAMIC": _w4,
}


class MsModelSlimWriter:
    """Writes layers as msModelSlim does, in version 1.0.0 of its layout.

    Args:
        layers: all quantised layers of the model by name: int4 weights share one group size, which the description
            names once, 0 if they are experts with one scale a row each.
        dtype: of the model: ``deq_scale`` is int64 for float16, float32 for others.
        int8_activations: the names of int4 layers, all of experts, whose activations are int8.
    """

    def __init__(self, layers: dict[str, QuantizedLinear], dtype: torch.dtype, int8_activations: set[str]) -> None:
        self._deq_as_int64 = dtype == torch.float16
        self._int8_activations = int8_activations
        int4 = {name: each for name, each in layers.items() if isinstance(each, WeightQuantLinear) and each.bits == 4}
        by_channel = int4.keys() <= int8_activations and not any(each.group_size for each in int4.values())
        sizes = [0 if by_channel else each.group_size or each.in_features for each in int4.values()]
        self._group_size = math.gcd(*sizes)
        self._types: dict[str, str] = {}

    def tensors(self, name: str, layer: QuantizedLinear) -> dict[str, torch.Tensor]:
        """The tensors of a layer by the last parts of their names.

        Raises:
            ValueError: the layout has no place for the layer.
        """
        kind, made = self._written(name, layer)
        self._types |= {f"{name}.{key}": kind for key in made}
        return made

    def description(self, names: list[str]) -> dict[str, object]:
        """What the description says of the tensors ``names`` of the whole model."""
        kinds = sorted(set(self._types.values()))
        head = {"version": "1.0.0", "model_quant_type": kinds[0] if kinds else _FLOAT, "group_size": self._group_size}
        cache = dict.fromkeys(
            (name for name in names if name.rpartition(".")[2] in (CACHE_SCALE, CACHE_OFFSET)), _CACHE
        )
        if cache:
            head["kv_cache_type"] = _CACHE
        return head | {name: self._types.get(name, _FLOAT) for name in names} | cache

    def _written(self, name: str, layer: QuantizedLinear) -> tuple[str, dict[str, torch.Tensor]]:
        if isinstance(layer, StaticQuantLinear):
            return "W8A8", self._static(layer, layer.quant_bias, layer.deq_scale, layer.deq_scale / layer.input_scale)
        if isinstance(layer, QuantLinear):
            if layer.input_scale is None:
                return "W8A8_DYNAMIC", _with_bias(_by_channel(layer.codes(), layer.scale), layer.bias)
            deq_scale = layer.scale * layer.input_scale
            return "W8A8", self._static(layer, _bias_in_units(layer.bias, deq_scale), deq_scale, layer.scale)
        require("msmodelslim", isinstance(layer, WeightQuantLinear), f"no type for {type(layer).__name__}")
        typed = ".experts." not in name or name in self._int8_activations
        sentence = "experts with float activations have no type that vllm-ascend reads; --to compressed-tensors has"
        require("msmodelslim", typed, sentence)
        sentence = "needs weights without {}: the layout has no place for it; --to compressed-tensors has"
        require("msmodelslim", layer.offset is None, sentence.format("an offset (asymmetric)"))
        require("msmodelslim", layer.input_order is None, sentence.format("input_order (act-order)"))
        if layer.bits == 8:
            require(
                "msmodelslim", layer.group_size == 0, f"W8A16 needs one scale a row, got group_size {layer.group_size}"
            )
            return "W8A16", _with_bias(_by_channel(layer.codes(), layer.scale), layer.bias)
        return "W4A8_DYNAMIC", _with_bias(self._int4(name, layer), layer.bias)

    def _static(
        self, layer: QuantLinear | StaticQuantLinear, quant_bias: torch.Tensor, deq: torch.Tensor, scale: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        offset = layer.input_offset if isinstance(layer, StaticQuantLinear) else torch.zeros(1)
        return {
            **_by_channel(layer.codes(), scale),
            "input_scale": layer.input_scale,
            "input_offset": offset.to(torch.int8),
            "deq_scale": deq.view(torch.int32).long() & 0xFFFFFFFF if self._deq_as_int64 else deq,
            "quant_bias": quant_bias,
        }

    def _int4(self, name: str, layer: WeightQuantLinear) -> dict[str, torch.Tensor]:
        n, k, size = layer.out_features, layer.in_features, self._group_size
        require("msmodelslim", n % 2 == 0, f"int4 needs an even N, got {n}")
        codes, scale = layer.codes(), layer.scale.reshape(-1, n).t().contiguous()  # [N, G]
        made = {"weight": _two_in_a_byte(codes), "weight_scale": scale, "weight_offset": torch.zeros(n, 1)}
        if size != 0:
            whole = size % 32 == 0 and k % size == 0
            sentence = f"int4 needs one group_size that divides K, a multiple of 32, got {size} and {k}"
            require("msmodelslim", whole, sentence)
            scale = scale.repeat_interleave((layer.group_size or k) // size, dim=1).contiguous()
            made |= {
                "weight_scale": torch.ones(n, 1),  # so that the product with the second one is exact
                "weight_scale_second": scale,
                "weight_offset_second": torch.zeros(scale.shape, dtype=torch.int64),
            }
        return {**made, "scale_bias": _scale_bias(codes, scale, name.rpartition(".")[2] in _ROW_PARALLEL)}


def _scale_bias(codes: torch.Tensor, scale: torch.Tensor, row_parallel: bool) -> torch.Tensor:
    """8 times the sum of each row's weights, what makes up for int4 codes that are multiplied as unsigned halves."""
    columns = _ROW_PARALLEL_COLUMNS if row_parallel and codes.shape[1] % _ROW_PARALLEL_COLUMNS == 0 else 1
    weights = codes.double() * scale.double().repeat_interleave(codes.shape[1] // scale.shape[1], dim=1)
    return (8 * weights.unflatten(1, (columns, -1)).sum(-1)).float()


def _by_channel(codes: torch.Tensor, scale: torch.Tensor) -> dict[str, torch.Tensor]:
    rows = scale.reshape(-1, 1).contiguous()
    return {"weight": codes, "weight_scale": rows, "weight_offset": torch.zeros_like(rows)}


def _with_bias(tensors: dict[str, torch.Tensor], bias: torch.Tensor | None) -> dict[str, torch.Tensor]:
    return tensors if bias is None else {**tensors, "bias": bias}


def _bias_in_units(bias: torch.Tensor | None, deq_scale: torch.Tensor) -> torch.Tensor:
    """A float bias in whole units of ``deq_scale``, to the nearest: one unit is one step of the int32 sum."""
    if bias is None:
        return torch.zeros(deq_scale.shape, dtype=torch.int32)
    units = torch.where(bias == 0, 0, bias.double() / deq_scale.double()).round()
    require("msmodelslim", bool((units.abs() < 2**31).all()), "bias must be an int32 in units of deq_scale, got more")
    return units.to(torch.int32)
