# SPDX-License-Identifier: Apache-2.0
"""Packed operands of quant_matmul as int8, and products of groups of k, for what no kernel takes as it is."""

from __future__ import annotations

from collections.abc import Callable

import torch

from anynpu._check import require
from anynpu.ops.int4_pack import int4_unpack
from anynpu.ops.quant_matmul.reference import scale_values
from anynpu.ops.quant_matmul.spec import OP
from anynpu.ops.weight_quant_matmul.reference import unprepacked
from anynpu.ops.weight_quant_matmul.spec import is_prepacked, is_transposed


def unpacked_x1(x1: torch.Tensor) -> torch.Tensor:
    """int8 out of words of eight k."""
    require(OP, x1.dim() >= 2, f"x1 dim num should be 2 ~ 6, please check x1 dim num, got {x1.dim()}")
    require(OP, x1.is_contiguous(), f"an int4 x1 must be contiguous, got strides {x1.stride()}")
    return _unpacked_rows(x1)


def unpacked_x2(x2: torch.Tensor, k: int) -> torch.Tensor:
    """int8 (K, N) of what is prepacked, or of words, which hold eight n, or in a transposed view eight k."""
    if is_prepacked(x2):
        return unprepacked(x2.cpu()).to(x2.device)
    return _unpacked_rows(x2.t()).t() if is_transposed(x2, k) else _unpacked_rows(x2)


def _unpacked_rows(words: torch.Tensor) -> torch.Tensor:
    shape = (*words.shape[:-1], words.shape[-1] * 8)
    if words.numel() == 0:
        return words.new_empty(shape, dtype=torch.int8)
    return int4_unpack(words.reshape(-1, words.shape[-1]).contiguous(), torch.int8).reshape(shape)


def sum_groups(
    product: Callable[..., torch.Tensor],
    x1: torch.Tensor,
    x2: torch.Tensor,
    scale: torch.Tensor,
    offset: torch.Tensor | None,
    pertoken_scale: torch.Tensor | None,
    bias: torch.Tensor | None,
    output_dtype: torch.dtype,
    group_size: int,
) -> torch.Tensor:
    """(sum_g (x1_g @ x2_g) * scale[g] + offset) * pertoken_scale + bias of unpacked operands that fit."""
    factors = scale_values(scale)[0].float()
    total = torch.zeros((*x1.shape[:-1], x2.shape[-1]), device=x1.device)
    for group, factor in enumerate(factors):
        part = slice(group * group_size, (group + 1) * group_size)
        total += product(x1[..., part], x2[part], factor, output_dtype=torch.int32) * factor
    if offset is not None:
        total += offset
    if pertoken_scale is not None:
        total *= pertoken_scale.reshape(-1, 1)
    return (total if bias is None else total + bias.float()).to(output_dtype)
