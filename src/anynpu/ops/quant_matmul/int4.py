# SPDX-License-Identifier: Apache-2.0
"""Packed operands of quant_matmul as int8, for what no kernel takes as it is."""

from __future__ import annotations

import torch

from anynpu._check import require
from anynpu.ops.int4_pack import int4_unpack
from anynpu.ops.quant_matmul.spec import OP
from anynpu.ops.weight_quant_matmul.spec import is_transposed


def unpacked_x1(x1: torch.Tensor) -> torch.Tensor:
    """int8 out of words of eight k."""
    require(OP, x1.dim() >= 2, f"x1 dim num should be 2 ~ 6, please check x1 dim num, got {x1.dim()}")
    require(OP, x1.is_contiguous(), f"an int4 x1 must be contiguous, got strides {x1.stride()}")
    return _unpacked_rows(x1)


def unpacked_words(x2: torch.Tensor, k: int) -> torch.Tensor:
    """int8 (K, N) of words, which hold eight n, or in a transposed view eight k."""
    return _unpacked_rows(x2.t()).t() if is_transposed(x2, k) else _unpacked_rows(x2)


def _unpacked_rows(words: torch.Tensor) -> torch.Tensor:
    shape = (*words.shape[:-1], words.shape[-1] * 8)
    if words.numel() == 0:
        return words.new_empty(shape, dtype=torch.int8)
    return int4_unpack(words.reshape(-1, words.shape[-1]).contiguous(), torch.int8).reshape(shape)
