# SPDX-License-Identifier: Apache-2.0
"""Quantises the linear layers of PyTorch models, and saves and loads them."""

from anynpu.quantization.activations import ActivationScales, calibrate_activations
from anynpu.quantization.checkpoint import load_quantized, save_quantized
from anynpu.quantization.config import W4A8, W4A16, W8A8, W8A16, QuantConfig, W8A8Compressed, WeightQuantConfig
from anynpu.quantization.quantize import quantize_

__all__ = [
    "W4A8",
    "W4A16",
    "W8A8",
    "W8A16",
    "ActivationScales",
    "QuantConfig",
    "W8A8Compressed",
    "WeightQuantConfig",
    "calibrate_activations",
    "load_quantized",
    "quantize_",
    "save_quantized",
]
