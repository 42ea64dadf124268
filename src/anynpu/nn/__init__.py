# SPDX-License-Identifier: Apache-2.0
"""Modules with quantised weights."""

from anynpu.nn.weight_quant_linear import WeightQuantLinear

__all__ = ["WeightQuantLinear"]
