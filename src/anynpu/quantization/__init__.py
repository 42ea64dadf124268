# SPDX-License-Identifier: Apache-2.0
"""Quantises the weights of PyTorch models, and saves and loads them."""

from anynpu.quantization.checkpoint import load_quantized, save_quantized
from anynpu.quantization.config import W4A16, W8A16, WeightQuantConfig
from anynpu.quantization.quantize import quantize_

__all__ = ["W4A16", "W8A16", "WeightQuantConfig", "load_quantized", "quantize_", "save_quantized"]
