# SPDX-License-Identifier: Apache-2.0
"""Linear layers with quantised weights."""

from anynpu.nn.int8_linear import CompressedLinear, QuantLinear
from anynpu.nn.quantized_linear import QuantizedLinear
from anynpu.nn.weight_quant_linear import WeightQuantLinear

_KINDS = (CompressedLinear, QuantLinear, WeightQuantLinear)
LAYERS: dict[str, type[QuantizedLinear]] = {kind.__name__: kind for kind in _KINDS}  # by their name in checkpoints

__all__ = ["CompressedLinear", "QuantLinear", "QuantizedLinear", "WeightQuantLinear"]
