# SPDX-License-Identifier: Apache-2.0
"""Layers with quantised weights."""

from anynpu.nn.expert_parallel import ExpertParallelMoE
from anynpu.nn.int4_linear import Int4Linear
from anynpu.nn.int8_linear import CompressedLinear, QuantLinear
from anynpu.nn.quant_experts import QuantExperts
from anynpu.nn.quant_moe import QuantMoE
from anynpu.nn.quantized_linear import QuantizedLinear
from anynpu.nn.routed_experts import LinearExperts, RoutedExperts
from anynpu.nn.static_quant_linear import StaticQuantLinear
from anynpu.nn.weight_quant_linear import WeightQuantLinear

_KINDS = (CompressedLinear, Int4Linear, QuantLinear, QuantMoE, RoutedExperts, StaticQuantLinear, WeightQuantLinear)
QuantizedLayer = QuantizedLinear | QuantMoE | RoutedExperts
LAYERS: dict[str, type[QuantizedLayer]] = {kind.__name__: kind for kind in _KINDS}  # in checkpoints

__all__ = [
    "CompressedLinear",
    "ExpertParallelMoE",
    "Int4Linear",
    "LinearExperts",
    "QuantExperts",
    "QuantLinear",
    "QuantMoE",
    "QuantizedLinear",
    "RoutedExperts",
    "StaticQuantLinear",
    "WeightQuantLinear",
]
